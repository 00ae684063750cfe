"""The small file: a pruned state dict as the values that are left and the gaps between them."""
