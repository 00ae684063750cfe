"""Checks that optimizer and model hold the weights to be pruned."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from fggp.module_names import named_modules
from fggp.text import listing
from fggp.weights.prunable import Prunable


def check_optimizer(weights: Iterable[Prunable], optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that has no step hooks, has no one gradient for a step, or lacks a weight.

    Raises:
        TypeError: it has no step hooks.
        ValueError: it is LBFGS, or does not hold every weight.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("optimizer=LBFGS evaluates the loss several times a step: no one gradient belongs to a step")
    # Wrappers that inherit from Optimizer without initialising it have its methods but not its hooks.
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError(
            f"optimizer={type(optimizer).__name__} has no step hooks: pass the torch.optim.Optimizer that it wraps"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [w.name for w in weights if id(w.parameter) not in held]
    if missing:
        raise ValueError(
            f"optimizer={type(optimizer).__name__} does not hold {listing(missing)}: give it all weights to be "
            f"pruned, or leave these out with exclude="
        )


def check_attached(weights: Iterable[Prunable], model: nn.Module) -> None:
    """Refuse weights whose module is no longer in the model.

    Raises:
        RuntimeError: a module was taken out of the model, or replaced by another.
    """
    present = {id(module) for _, module in named_modules(model)}
    detached = [w.name for w in weights if any(id(module) not in present for module, _, _ in w.owners)]
    if detached:
        raise RuntimeError(
            f"the module of {listing(detached)} is no longer part of the model: make a new optimizer and Pruner "
            f"(init='keep' goes on with the zeros)"
        )
