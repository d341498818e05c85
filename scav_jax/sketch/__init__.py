"""A first stage of search that knows time, of a finished run: `scav sketch --run RUN`."""
