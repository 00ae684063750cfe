"""Exactly the k lowest-ranked weights: chains of Top-K steps over any device, in one process or many."""
