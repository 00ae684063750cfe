"""A network with whole numbers of 8 bits: what its values stand for, and its operations on them."""
