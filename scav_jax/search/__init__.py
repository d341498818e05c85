"""A file in, ranked clips out: `scav search INDEX FILE... --model RUN`."""
