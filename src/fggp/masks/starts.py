"""The masks that pruning starts from: dense, random with given layer densities, given, or as the weights are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from fggp.schedule import active_count, apportion
from fggp.scores import random
from fggp.selection.chains import keep_smallest
from fggp.weights.dtensor import local, own_part
from fggp.weights.layers import flatten
from fggp.weights.processes import ALONE, Processes
from fggp.weights.prunable import Prunable

Init = Literal["erk", "uniform", "keep"] | Mapping[str, Tensor]
"""How the zeros to start from are chosen; see `fggp.Pruner`."""


def starting_masks(
    weights: Sequence[Prunable], init: Init, init_sparsity: float, seed: int, processes: Processes = ALONE
) -> list[Tensor]:
    """The masks to start from: for each weight a bool tensor of its shape (of this process's part), True = kept.

    Raises:
        ValueError: an unknown ``init``, or masks that do not fit the weights.
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
    """How many weights of each layer stay: Erdős–Rényi-Kernel densities (Evci et al. 2020, arXiv 1911.11134).

    A layer's density is in proportion to (sum of its dimensions) / (their product), so its number of active
    weights is to their sum.
    """
    return apportion(active, [sum(s) for s in shapes], [s.numel() for s in shapes])


def uniform(shapes: Sequence[torch.Size], active: int) -> list[int]:
    """How many weights of each layer stay: the same density everywhere."""
    return apportion(active, [s.numel() for s in shapes], [s.numel() for s in shapes])


def random_masks(
    weights: Sequence[Prunable], counts: Sequence[int], seed: int, processes: Processes = ALONE
) -> list[Tensor]:
    """For each weight a random mask with exactly that many active, a function of seed and weight names alone."""
    masks = []
    for layer, count in zip(flatten(weights, owned=processes.owned or None), counts, strict=True):
        marks = [torch.ones(len(layer), dtype=torch.bool, device=layer.weight.device)]
        keep_smallest([layer], marks, layer.whole, random(seed, 0), count, processes)
        masks.append(layer.layout.shaped(marks[0]))
    return masks


def given_masks(weights: Sequence[Prunable], masks: Mapping[str, Tensor]) -> list[Tensor]:
    """The user's masks, checked: for every weight, by name, a bool tensor of its (whole) shape, True = kept."""
    names = {w.name for w in weights}
    unknown, missing = sorted(set(masks) - names), sorted(names - set(masks))
    if unknown or missing:
        raise ValueError(
            f"init masks must be named as the weights to prune: no weight is called {unknown[:4]}"
            if unknown
            else f"init masks must cover every weight to prune: {missing[:4]} have none"
        )
    for w in weights:
        mask = masks[w.name]
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != w.parameter.shape:
            got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"init mask of {w.name!r} is {got}; it must be a bool tensor {list(w.parameter.shape)}")
    return [own_part(w.parameter, masks[w.name]) for w in weights]
