"""The small file: a pruned state dict stored as its non-zero values and the gaps between them."""
