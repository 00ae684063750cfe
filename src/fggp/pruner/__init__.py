"""Binds a pruning method to a model and its optimizer: what to aim at, one update, what goes wrong, what is saved."""

from fggp.pruner.pruner import Pruner

__all__ = ["Pruner"]
