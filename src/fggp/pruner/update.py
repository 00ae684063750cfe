"""One mask update: what the method plans, what can postpone it, and the choice of the weights that stay active."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fggp.masks.masks import Masks
from fggp.methods import Method, Update, checked_chain
from fggp.pruner.targets import Targets
from fggp.schedule import apportion
from fggp.scores import magnitude
from fggp.selection import passes
from fggp.selection.chains import Exchange, TopK, count_marked_each, prune, run_exchange
from fggp.selection.groups import Marks, in_groups, of_weights
from fggp.selection.rows import keep_rows
from fggp.weights.averages import Averages
from fggp.weights.gradients import Gradients
from fggp.weights.layers import Layer, flatten
from fggp.weights.processes import Processes

Scope = Literal["global", "layer"]
"""Which weights are ranked together: all, or those of each layer."""


@dataclass(frozen=True)
class Ranking:
    """Layers whose weights an update ranks together.

    Args:
        layers: their indices.
        target: how many of their units, which are weights or groups of weights, stay active.
        chain: the chain of Top-K steps that leaves ``target`` of ``active`` units, as a function of the two.
    """

    layers: list[int]
    target: int
    chain: Callable[[int, int], Sequence[TopK]]


@dataclass(frozen=True)
class Plan:
    """What an update does: layers that are ranked together are pruned, and then each layer exchanges weights.

    Args:
        rankings: the layers that are ranked together, and their targets.
        floors: the number of active units below which no layer is pruned.
        exchange: which weights are then dropped and regrown, if any.
        exchanged: the layers in which they are.
        needs_gradient: whether some score of the plan reads gradients.
    """

    rankings: list[Ranking]
    floors: list[int]
    exchange: Exchange | None
    exchanged: list[int]
    needs_gradient: bool


def plan_update(
    method: Method,
    targets: Targets,
    *,
    step: int,
    scope: Scope,
    seed: int,
    masks: Masks,
    initial_counts: Sequence[int],
    has_gradient: Sequence[bool],
) -> Plan:
    """Plan the update at a step: schedules say how many weights are pruned, the method says by which chain.

    A chain that reads gradients cannot rank a layer that never had one. Such layers lose the same share of their active
    weights as the others do together, by magnitude.

    Args:
        method: the method.
        targets: how many weights of which layers are active when.
        step: the optimizer step, from 1.
        scope: which weights of a budget are ranked together.
        seed: the pruner's seed.
        masks: the masks before the update.
        initial_counts: the active weights of each layer when pruning started; ``"layer"`` keeps their proportions.
        has_gradient: for each layer, whether it has or had a gradient.

    Raises:
        ValueError: the method's chain does not prune the planned number of weights.
    """
    progress = targets.schedule.progress(step)
    counts, allowed = masks.units, masks.allowed
    floors = [min(floor, n) for floor, n in zip(targets.floors, allowed, strict=True)]

    def update(active: int, target: int) -> Update:
        return Update(step, active, max(0, active - target), progress, seed)

    def chain(active: int, target: int) -> Sequence[TopK]:
        return checked_chain(method, update(active, target))

    # The layers that are ranked together, and how many of their weights stay.
    ranked: list[tuple[list[int], int]] = []
    total_target = 0
    for budget in targets.budgets:
        layers = list(budget.layers)
        target = min(budget.schedule.active_at(step, budget.total), budget.active(counts))
        total_target += target
        if scope == "global":
            ranked.append((layers, target))
        else:
            # Once a pattern can hold, every layer keeps to it.
            caps = allowed if target <= sum(allowed[i] for i in layers) else counts
            own = [[values[i] for i in layers] for values in (initial_counts, caps, floors)]
            ranked += [([i], part) for i, part in zip(layers, apportion(target, *own), strict=True)]

    rankings: list[Ranking] = []
    needs_gradient = False
    for layers, target in ranked:
        active = sum(counts[i] for i in layers)
        if active == target:
            continue
        if not any(top.score.needs_gradient for top in chain(active, target)):
            rankings.append(Ranking(layers, target, chain))
            continue
        needs_gradient = True
        for members, cut in _cut_in_proportion(layers, active - target, counts, floors, allowed, has_gradient):
            how = chain if has_gradient[members[0]] else _by_magnitude
            rankings.append(Ranking(members, sum(counts[i] for i in members) - cut, how))

    exchange, exchanged = method.exchange(update(sum(counts), total_target)), list(range(len(counts)))
    if exchange is not None and (exchange.drop.needs_gradient or exchange.grow.needs_gradient):
        needs_gradient, exchanged = True, [i for i in exchanged if has_gradient[i]]
    return Plan(rankings, floors, exchange, exchanged, needs_gradient)


def _by_magnitude(active: int, target: int) -> Sequence[TopK]:
    return [TopK(magnitude, active - target)]


def _cut_in_proportion(
    layers: Sequence[int],
    excess: int,
    counts: Sequence[int],
    floors: Sequence[int],
    allowed: Sequence[int],
    has_gradient: Sequence[bool],
) -> list[tuple[list[int], int]]:
    """Split the units to prune over the layers with a gradient and those without: the same share of both.

    Each loses at least what exceeds its pattern, if all that does is pruned.

    Returns:
        The layers of each part that loses some, and how many.
    """
    parts = [[i for i in layers if has_gradient[i]], [i for i in layers if not has_gradient[i]]]
    sizes = [sum(counts[i] for i in part) for part in parts]
    spare = [sum(counts[i] - floors[i] for i in part) for part in parts]
    surplus = [sum(counts[i] - allowed[i] for i in part) for part in parts]
    cuts = apportion(excess, sizes, spare, surplus if sum(surplus) <= excess else None)
    return [(part, cut) for part, cut in zip(parts, cuts, strict=True) if cut]


def find_obstacle(plan: Plan, method: Method, masks: Masks, gradients: Gradients) -> str | None:
    """Say why the present gradients do not allow the update, or None if they do; all processes call this together."""
    finite = passes.all_finite(Gradients.of_this_step(masks.weights).strided())
    [not_finite] = masks.processes.sum([not finite])
    if not_finite:
        return "a gradient is not finite"
    if not gradients.present and plan.needs_gradient:
        return f"no weight has a gradient, and {method.name!r} ranks by it"
    return None


@dataclass(frozen=True)
class Choice:
    """The weights that are active after an update; `Masks.set_and_apply` applies it.

    Args:
        layers: the layers that the selection read.
        active: the active weights, a bool tensor [n] for each layer.
        regrown: whether some of them may have been pruned before.
    """

    layers: list[Layer]
    active: Marks
    regrown: bool


def choose(plan: Plan, masks: Masks, gradients: Gradients, averages: Averages) -> Choice:
    """Carry out a plan on the present weights and gradients, without changing anything.

    All processes call this together.

    Args:
        plan: the plan.
        masks: the masks before the update.
        gradients: the gradients to rank by.
        averages: the method's running averages of gradients.

    Raises:
        RuntimeError: processes that hold the same weights chose different ones.
    """
    processes = masks.processes
    layers = flatten(masks.weights, gradients, processes.owned, averages)
    before = masks.flat(layers)
    units, active = in_groups(layers, before, processes)
    for ranking in plan.rankings:
        for i, kept in _prune(ranking, units, active, masks.units, plan.floors, processes):
            active[i] = kept
    if plan.exchange is not None:
        ranked = plan.exchanged
        after = run_exchange([units[i] for i in ranked], [active[i] for i in ranked], plan.exchange, processes)
        for i, kept in zip(ranked, after, strict=True):
            active[i] = kept
    active = keep_rows(masks.weights, layers, before, of_weights(units, active), processes)
    masks.check_same(active)
    return Choice(layers, active, plan.exchange is not None)


def _prune(
    ranking: Ranking,
    layers: Sequence[Layer],
    active: Sequence[torch.Tensor],
    counts: Sequence[int],
    floors: Sequence[int],
    processes: Processes,
) -> list[tuple[int, torch.Tensor]]:
    """Prune layers that are ranked together to their target: the index and the active units of each.

    A layer that the ranking would take below its floor is pruned by itself to its floor, and the others are ranked
    again for what remains, until no layer is below its floor.
    """

    def run(members: Sequence[int], target: int) -> list[torch.Tensor]:
        count, own = sum(counts[i] for i in members), [active[i] for i in members]
        pruned = prune([layers[i] for i in members], own, count, target, ranking.chain, processes)
        return [p.logical_xor_(active[i]) for i, p in zip(members, pruned, strict=True)]

    done: list[tuple[int, torch.Tensor]] = []
    rest, target = ranking.layers, ranking.target
    while rest:
        kept = run(rest, target)
        low = set()
        if any(floors[i] for i in rest):
            left = count_marked_each([layers[i].owned for i in rest], kept, processes)
            low = {i for i, n in zip(rest, left, strict=True) if n < floors[i]}
        if not low:
            return [*done, *zip(rest, kept, strict=True)]
        done += [(i, run([i], floors[i])[0]) for i in rest if i in low]
        target -= sum(floors[i] for i in low)
        rest = [i for i in rest if i not in low]
    return done
