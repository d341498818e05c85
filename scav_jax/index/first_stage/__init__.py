"""`scav sketch`: what an index chooses candidates by, learned for a run."""
