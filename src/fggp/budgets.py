"""How many weights stay: the budgets that the user's targets make of the model's layers, and each layer's floor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from fggp.schedule import Schedule, active_count
from fggp.text import listing
from fggp.weights.prunable import Prunable

EVERYTHING = "*"
"""The pattern of the one budget that a single target makes."""


@dataclass(frozen=True)
class Budget:
    """Layers that reach one sparsity together.

    Args:
        pattern: the pattern of the layers' names.
        layers: their indices.
        schedule: how sparse they are at each step.
        total: how many weights they have.
    """

    pattern: str
    layers: tuple[int, ...]
    schedule: Schedule
    total: int

    @property
    def final(self) -> int:
        """The number of weights that are active at the end."""
        return active_count(self.schedule.sparsity, self.total)


def split(weights: Sequence[Prunable], sparsity: float | Mapping[str, float]) -> dict[str, tuple[int, ...]]:
    """The layers of each target, by its pattern: a layer belongs to the first pattern that matches one of its names.

    Args:
        weights: the prunable weights.
        sparsity: one target for all, or targets by pattern.

    Raises:
        ValueError: there is no target, a pattern is that of no layer, or a layer has none.
        TypeError: a pattern is no string.
    """
    if not isinstance(sparsity, Mapping):
        return {EVERYTHING: tuple(range(len(weights)))}
    if not sparsity:
        raise ValueError("sparsity={} must have a target for every weight: {'*': 0.9}")
    layers: dict[str, list[int]] = {}
    for pattern in sparsity:
        if not isinstance(pattern, str):
            raise TypeError(f"sparsity has the key {pattern!r}; it must be a pattern of weight names")
        layers[pattern] = []
    without = []
    for i, w in enumerate(weights):
        names = [name for *_, name in w.owners] or [w.name]
        first = next((p for p in layers if any(fnmatchcase(name, p) for name in names)), None)
        if first is None:
            without.append(w.name)
        else:
            layers[first].append(i)
    if without:
        raise ValueError(f"sparsity has no target for {listing(without)}: add one for '*', which is used last")
    unused = [pattern for pattern, members in layers.items() if not members]
    if unused:
        raise ValueError(
            f"sparsity has a target for {unused[0]!r}, which matches no prunable weight, or only ones that an earlier "
            f"pattern has; the weights are {listing([w.name for w in weights])}"
        )
    return {pattern: tuple(members) for pattern, members in layers.items()}


def make_budgets(
    weights: Sequence[Prunable], groups: Mapping[str, tuple[int, ...]], schedules: Sequence[Schedule]
) -> list[Budget]:
    """The budgets of groups of layers, each with its schedule."""
    return [
        Budget(pattern, layers, schedule, sum(weights[i].parameter.numel() for i in layers))
        for (pattern, layers), schedule in zip(groups.items(), schedules, strict=True)
    ]


def target_of(sparsity: float | Mapping[str, float], pattern: str) -> float:
    """The target of a budget."""
    return sparsity[pattern] if isinstance(sparsity, Mapping) else sparsity


def whole(budgets: Sequence[Budget]) -> Schedule:
    """The schedule of all budgets together, with the shares of zeros that they add up to."""
    if len(budgets) == 1:
        return budgets[0].schedule
    total = sum(b.total for b in budgets)
    initial = sum(active_count(b.schedule.init_sparsity, b.total) for b in budgets)
    return replace(
        budgets[0].schedule,
        sparsity=1 - sum(b.final for b in budgets) / total,
        init_sparsity=1 - initial / total,
    )


def layer_floors(
    weights: Sequence[Prunable], floor: Any, needed: Sequence[int], budgets: Sequence[Budget]
) -> list[int]:
    """The number of active weights below which no layer is pruned.

    Args:
        weights: the prunable weights.
        floor: the user's: a number of weights, or a share of each layer; None: none.
        needed: what each layer needs to compute at all (a weight for each row that weight norm divides by its norm).
        budgets: the targets that the floors must leave room for.

    Raises:
        TypeError: floor is no number.
        ValueError: floor is out of range, or a budget's floors add up to more than its target leaves.
    """
    if floor is not None and (isinstance(floor, bool) or not isinstance(floor, (int, float))):
        raise TypeError(f"floor={floor!r} must be a number: weights (int), or a share of each layer (float)")
    if floor is not None and not 0 <= floor <= (math.inf if isinstance(floor, int) else 1):
        raise ValueError(f"floor={floor!r} must be a number of weights (int, at least 0) or a share in [0.0, 1.0]")
    floors = []
    for w, need in zip(weights, needed, strict=True):
        size = w.parameter.numel()
        asked = 0 if floor is None else floor if isinstance(floor, int) else math.ceil(floor * size)
        floors.append(min(size, max(asked, need)))
    for b in budgets:
        least = sum(floors[i] for i in b.layers)
        if least > b.final:
            why = f"floor={floor!r}" if floor else "weight norm, which needs a weight in each row,"
            raise ValueError(
                f"sparsity={b.schedule.sparsity!r} leaves {b.final:,} of {b.total:,} weights; {why} keeps {least:,}: "
                f"lower one of the two"
            )
    return floors
