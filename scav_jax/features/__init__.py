"""Features: what one clip is on disk, data sets of clips, batches of them."""
