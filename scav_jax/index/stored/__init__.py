"""What lies in an index: its header and rows, and its sequences in files that are written once."""
