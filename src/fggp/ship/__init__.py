"""Shipping a pruned model: a small file that stores only non-zero weights, and a CPU runtime that skips zeros."""
