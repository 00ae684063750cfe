"""A model as a graph of operations: captured, simplified, and interpreted by PyTorch."""
