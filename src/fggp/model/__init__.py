"""A model's parameters: which are prunable, why others are not, and where a copy of the model holds them."""
