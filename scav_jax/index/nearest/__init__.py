"""The search in an index: which of the stored clips are nearest to some queries, and how far."""
