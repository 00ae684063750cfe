"""Checks that the model still holds the weights to be pruned."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from fggp.module_names import named_modules
from fggp.text import listing
from fggp.weights.prunable import Prunable


def find_detached(weights: Iterable[Prunable], model: nn.Module) -> list[str]:
    """The names of the weights whose module was taken out of the model, or replaced by another."""
    present = {id(module) for _, module in named_modules(model)}
    return [w.name for w in weights if any(id(module) not in present for module, _, _ in w.owners)]


def check_attached(weights: Iterable[Prunable], model: nn.Module) -> None:
    """Refuse weights whose module is no longer in the model.

    Raises:
        RuntimeError: a module was taken out of the model, or replaced by another.
    """
    detached = find_detached(weights, model)
    if detached:
        raise RuntimeError(
            f"the module of {listing(detached)} is no longer part of the model: make a new optimizer and Pruner "
            f"(init='keep' goes on with the zeros)"
        )
