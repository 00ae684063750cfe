"""Pruning in Lightning: ``Trainer(callbacks=[Pruning(sparsity=0.9)])``."""

from fggp.lightning.callback import Pruning

__all__ = ["Pruning"]
