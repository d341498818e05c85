"""The paper's tables on any data set: `scav evaluate --run RUN --data DATA --split test`."""
