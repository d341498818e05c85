"""The geometry of log-mels on disk: what sides store, and objectives, towers and plans read."""

MEL_BINS = 128
STACKED_FRAMES = 16  # of 10 ms, side by side in a step of sound
