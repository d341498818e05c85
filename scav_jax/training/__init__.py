"""A run: its config, its processes, its checkpoints, what it writes."""
