"""What this machine has for the project, and what is wrong with it: `scav doctor`."""
