"""How many weights stay: the targets of layers, with their schedules, and the floor of each layer.

If weights are pruned in groups, all counts here are those of groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from fggp.schedule import Schedule, active_count
from fggp.selection.rows import least_active
from fggp.text import listing
from fggp.weights.prunable import Prunable

EVERYTHING = "*"
"""The pattern of a single target."""


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

    def active(self, counts: Sequence[int]) -> int:
        """The number of weights that are active, from that of each of the model's layers."""
        return sum(counts[i] for i in self.layers)


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


def split_into_budgets(
    weights: Sequence[Prunable], sparsity: float | Mapping[str, float], schedules: Sequence[Schedule]
) -> tuple[Budget, ...]:
    """The budget of each target.

    Args:
        weights: the prunable weights.
        sparsity: one target for all, or targets by pattern; see `split`.
        schedules: the schedule of each.
    """
    return tuple(
        Budget(pattern, layers, schedule, sum(weights[i].units for i in layers))
        for (pattern, layers), schedule in zip(split(weights, sparsity).items(), schedules, strict=True)
    )


@dataclass(frozen=True)
class Targets:
    """What pruning aims at.

    Args:
        budgets: layers that reach one sparsity together; each layer is in one.
        floor: the user's floor: weights (int) or a share (float) of each layer; None: none.
        floors: for each layer the number of active weights below which it is not pruned.
    """

    budgets: tuple[Budget, ...]
    floor: float | int | None
    floors: tuple[int, ...]

    @staticmethod
    def of(weights: Sequence[Prunable], budgets: tuple[Budget, ...], floor: Any) -> Targets:
        """The targets of some weights.

        Raises:
            TypeError: floor is no number.
            ValueError: floor is out of range, floors add up to more than a budget leaves, or a budget leaves more than
                an N:M pattern.
        """
        _check_patterns(weights, budgets)
        return Targets(budgets, floor, layer_floors(weights, floor, budgets))

    @cached_property
    def schedule(self) -> Schedule:
        """The schedule of all layers, with the share of zeros that their budgets add up to."""
        if len(self.budgets) == 1:
            return self.budgets[0].schedule
        total = sum(b.total for b in self.budgets)
        initial = sum(active_count(b.schedule.init_sparsity, b.total) for b in self.budgets)
        return replace(
            self.budgets[0].schedule,
            sparsity=1 - sum(b.final for b in self.budgets) / total,
            init_sparsity=1 - initial / total,
        )

    @property
    def sparsity(self) -> float | dict[str, float]:
        """The final sparsity, or that of each pattern of names."""
        of_each = {b.pattern: float(b.schedule.sparsity) for b in self.budgets}
        return of_each[EVERYTHING] if list(of_each) == [EVERYTHING] else of_each

    def reached(self, counts: Sequence[int]) -> bool:
        """Whether layers with these numbers of active weights are at their final sparsity."""
        return all(b.active(counts) == b.final for b in self.budgets)

    def starting_from(self, counts: Sequence[int], allowed: Sequence[int], init_sparsity: float | None) -> Targets:
        """The same targets, from masks that the user gave.

        Args:
            counts: the number of active weights of each layer in these masks.
            allowed: how many of them an N:M pattern lets stay.
            init_sparsity: the argument of the Pruner.

        Raises:
            ValueError: the masks contradict ``init_sparsity``, or have fewer active weights than a target leaves, or
                fewer that may stay.
        """
        for b in self.budgets:
            if b.active(allowed) < b.final <= b.active(counts):
                raise ValueError(
                    f"granularity= lets only {b.active(allowed):,} of the {b.active(counts):,} weights stay that init "
                    f"keeps; sparsity={b.schedule.sparsity!r} leaves {b.final:,}: it must be at least "
                    f"{1 - b.active(allowed) / b.total}"
                )
        budgets = tuple(
            replace(b, schedule=replace(b.schedule, init_sparsity=_given_sparsity(b, b.active(counts), init_sparsity)))
            for b in self.budgets
        )
        return replace(self, budgets=budgets)

    def for_weights(self, weights: Sequence[Prunable]) -> Targets:
        """The same targets for other weights."""
        schedules = [b.schedule for b in self.budgets]
        return Targets.of(weights, split_into_budgets(weights, self.sparsity, schedules), self.floor)

    def changed(
        self,
        weights: Sequence[Prunable],
        counts: Sequence[int],
        sparsity: float | Mapping[str, float] | None = None,
        begin: int | None = None,
        end: int | None = None,
        every: int | None = None,
        last: int | None = None,
    ) -> Targets:
        """Targets with another sparsity, or other steps.

        Args:
            weights: the prunable weights.
            counts: how many weights of each layer are active.
            sparsity: one target for all, or targets by pattern; None: as now.
            begin: that of the schedules; None: as now. So are the others.
            end: that of the schedules.
            every: that of the schedules.
            last: that of the schedules.

        Raises:
            ValueError, TypeError: the schedule is impossible, or more weights are pruned than a target asks for.
        """

        def timed(old: Schedule) -> Schedule:
            return replace(
                old,
                begin=old.begin if begin is None else begin,
                end=old.end if end is None else end,
                every=old.every if every is None else every,
                last=old.last if last is None else last,
            )

        if sparsity is None:
            budgets = tuple(replace(b, schedule=timed(b.schedule)) for b in self.budgets)
        else:
            goals = sparsity.values() if isinstance(sparsity, Mapping) else [sparsity]
            now = timed(self.schedule)
            schedules = [replace(now, sparsity=s, init_sparsity=min(now.init_sparsity, s)) for s in goals]
            budgets = split_into_budgets(weights, sparsity, schedules)
        targets = Targets.of(weights, budgets, self.floor)
        for b in targets.budgets:
            if b.active(counts) < b.final:
                raise ValueError(
                    f"sparsity={b.schedule.sparsity!r} must be at least {1 - b.active(counts) / b.total}, the present "
                    f"sparsity: pruned weights do not come back"
                )
        return targets

    def ending_at(self, step: int) -> Targets:
        """The same targets, reached at a step."""
        budgets = tuple(
            replace(b, schedule=replace(b.schedule, begin=min(b.schedule.begin, step - 1), end=step, last=step))
            for b in self.budgets
        )
        return replace(self, budgets=budgets)


def _check_patterns(weights: Sequence[Prunable], budgets: Sequence[Budget]) -> None:
    for b in budgets:
        most = sum(w.units if w.grid is None else w.grid.most for w in (weights[i] for i in b.layers))
        if b.final > most:
            raise ValueError(
                f"sparsity={b.schedule.sparsity!r} leaves {b.final:,} of {b.total:,} weights; granularity= lets "
                f"{most:,} of them stay: it must be at least {1 - most / b.total}"
            )


def layer_floors(weights: Sequence[Prunable], floor: Any, budgets: Sequence[Budget]) -> tuple[int, ...]:
    """The number of active weights below which no layer is pruned.

    It is the user's floor, or what the layer needs to compute at all: a weight for each row that weight norm divides
    by its norm.

    Args:
        weights: the prunable weights.
        floor: the user's: a number of weights, or a share of each layer; None: none.
        budgets: the targets that the floors must leave room for.

    Raises:
        TypeError: floor is no number.
        ValueError: floor is out of range, more than a layer's pattern allows, or a budget's floors add up to more than
            its target leaves.
    """
    if floor is not None and (isinstance(floor, bool) or not isinstance(floor, (int, float))):
        raise TypeError(f"floor={floor!r} must be a number: weights (int), or a share of each layer (float)")
    if floor is not None and not 0 <= floor <= (math.inf if isinstance(floor, int) else 1):
        raise ValueError(f"floor={floor!r} must be a number of weights (int, at least 0) or a share in [0.0, 1.0]")
    floors = []
    for w in weights:
        size, most = w.units, w.units if w.grid is None else w.grid.most
        asked = 0 if floor is None else floor if isinstance(floor, int) else math.ceil(floor * size)
        if min(size, asked) > most:
            raise ValueError(
                f"floor={floor!r} keeps {min(size, asked):,} of the {size:,} weights of {w.name!r}; granularity= lets "
                f"{most:,} of them stay: lower floor"
            )
        floors.append(min(size, max(asked, least_active(w))))
    for b in budgets:
        least = sum(floors[i] for i in b.layers)
        if least > b.final:
            why = f"floor={floor!r}" if floor else "weight norm, which needs a weight in each row,"
            raise ValueError(
                f"sparsity={b.schedule.sparsity!r} leaves {b.final:,} of {b.total:,} weights; {why} keeps {least:,}: "
                f"lower one of the two"
            )
    return tuple(floors)


def _given_sparsity(budget: Budget, active: int, init_sparsity: float | None) -> float:
    """The initial sparsity of given masks; exactly the final one if they have that many zeros."""
    final, total = budget.schedule.sparsity, budget.total
    if init_sparsity is not None and active != active_count(init_sparsity, total):
        raise ValueError(
            f"init_sparsity={init_sparsity} contradicts init, whose masks have sparsity {1 - active / total}: "
            f"leave it out"
        )
    if active == budget.final:
        return final
    if active < budget.final:
        raise ValueError(f"sparsity={final!r} must be at least {1 - active / total}, the sparsity of the masks in init")
    return 1 - active / total
