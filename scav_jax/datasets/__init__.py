"""Lists of known data sets, and one that is rendered: `python -m scav_jax.datasets`."""
