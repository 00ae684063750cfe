"""Starting masks: dense, random with given layer densities, given by the user, or the non-zero weights of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from fggp.schedule import active_count, apportion
from fggp.scores import random
from fggp.selection.chains import select_smallest
from fggp.weights.dtensor import local, own_part
from fggp.weights.layers import flatten
from fggp.weights.processes import ALONE, Processes
from fggp.weights.prunable import Prunable

Init = Literal["erk", "uniform", "keep"] | Mapping[str, Tensor]
"""How the starting masks are chosen; see `fggp.Pruner`."""


def starting_masks(
    weights: Sequence[Prunable], init: Init, init_sparsity: float, seed: int, processes: Processes = ALONE
) -> list[Tensor]:
    """The masks to start from: for each weight a bool tensor, True = kept, of the shape of this process's part.

    Raises:
        ValueError: ``init`` is unknown, or its masks do not fit the weights.
    """
    total = sum(w.parameter.numel() for w in weights)
    active = active_count(init_sparsity, total)
    shapes = [w.parameter.shape for w in weights]
    if isinstance(init, Mapping):
        return given_masks(weights, init)
    if init == "keep":
        return [local(w.parameter) != 0 for w in weights]
    if init == "erk":
        return random_masks(weights, erk(shapes, active), seed, processes)
    if init == "uniform":
        return random_masks(weights, uniform(shapes, active), seed, processes)
    raise ValueError(f"init={init!r} must be 'erk', 'uniform', 'keep' or a mapping from weight names to bool tensors")


def erk(shapes: Sequence[torch.Size], active: int) -> list[int]:
    """The number of active weights per layer, Erdős–Rényi-Kernel densities (Evci et al. 2020, arXiv 1911.11134).

    A layer's density is proportional to (sum of its dimensions) / (their product), so its number of active weights is
    proportional to the sum of its dimensions.
    """
    return apportion(active, [sum(s) for s in shapes], [s.numel() for s in shapes])


def uniform(shapes: Sequence[torch.Size], active: int) -> list[int]:
    """The number of active weights per layer, the same density in each."""
    return apportion(active, [s.numel() for s in shapes], [s.numel() for s in shapes])


def random_masks(
    weights: Sequence[Prunable], counts: Sequence[int], seed: int, processes: Processes = ALONE
) -> list[Tensor]:
    """A random mask for each weight with its count of active weights, a function of seed and weight name alone."""
    masks = []
    for layer, count in zip(flatten(weights, owned=processes.owned or None), counts, strict=True):
        marks = [torch.ones(len(layer), dtype=torch.bool, device=layer.weight.device)]
        select_smallest([layer], marks, layer.total_size, random(seed, 0), count, processes)
        masks.append(layer.layout.shaped(marks[0]))
    return masks


def given_masks(weights: Sequence[Prunable], masks: Mapping[str, Tensor]) -> list[Tensor]:
    """Check the user's masks and return this process's part of each.

    Args:
        weights: the weights to prune.
        masks: for each weight, by name, a bool tensor of its full shape, True = kept.

    Raises:
        ValueError: a mask is missing, belongs to no weight, or has another dtype or shape.
    """
    names = {w.name for w in weights}
    unknown, missing = sorted(set(masks) - names), sorted(names - set(masks))
    if unknown or missing:
        raise ValueError(
            f"init masks must have the names of the weights to prune: no weight is called {unknown[:4]}"
            if unknown
            else f"init masks must cover every weight to prune: {missing[:4]} have none"
        )
    for w in weights:
        mask = masks[w.name]
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != w.parameter.shape:
            got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"init mask of {w.name!r} is {got}; it must be a bool tensor {list(w.parameter.shape)}")
    return [own_part(w.parameter, masks[w.name]) for w in weights]
