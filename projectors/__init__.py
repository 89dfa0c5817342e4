"""Features in, the shared space out: strand merging, pooling, standardising, the 512-D head."""
