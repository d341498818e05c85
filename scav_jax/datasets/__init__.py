"""Lists of known data sets, and one that is rendered: `scav datasets`."""
