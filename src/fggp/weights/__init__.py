"""The prunable weights of a model: how they are found, which part each process holds, and flat views of them."""
