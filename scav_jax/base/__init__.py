"""What a person can mend, files that appear whole, one progress bar, names that are doors."""
