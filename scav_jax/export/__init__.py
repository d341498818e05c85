"""A trained model as files that others can load: `scav export --run RUN --out DIR`."""

UNKNOWN_LICENCE = "unknown"
