"""One mask update: what the method plans, what can postpone it, and the choice of the weights that stay active."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fggp.masks.masks import Masks
from fggp.methods import Method, Update, checked_chain
from fggp.schedule import Schedule, apportion
from fggp.selection import passes
from fggp.selection.chains import Exchange, Marks, TopK, run_chain, run_exchange
from fggp.weights.averages import Averages
from fggp.weights.dtensor import local_gradient
from fggp.weights.layers import Layer, flatten

Scope = Literal["global", "layer"]
"""Which weights are ranked together: all, or those of each layer."""


@dataclass(frozen=True)
class Plan:
    """What an update does: chains that prune, and then an exchange within each layer.

    Args:
        chains: the layers that are ranked together, and the chain of Top-K steps that prunes their weights.
        exchange: which weights are then dropped and regrown, if any.
    """

    chains: list[tuple[slice, Sequence[TopK]]]
    exchange: Exchange | None

    @property
    def needs_gradient(self) -> bool:
        """Whether some score of the plan reads gradients."""
        scores = [step.score for _, chain in self.chains for step in chain]
        if self.exchange is not None:
            scores += [self.exchange.drop, self.exchange.grow]
        return any(score.needs_gradient for score in scores)


def plan_update(
    method: Method,
    schedule: Schedule,
    *,
    step: int,
    scope: Scope,
    seed: int,
    masks: Masks,
    initial_counts: Sequence[int],
) -> Plan:
    """Plan the update at a step: the schedule says how many weights are pruned, the method says by which chain.

    Args:
        method: the method.
        schedule: how many weights are active after the step.
        step: the optimizer step, from 1.
        scope: which weights are ranked together.
        seed: the pruner's seed.
        masks: the masks before the update.
        initial_counts: the active weights of each layer when pruning started; ``"layer"`` keeps their proportions.

    Raises:
        ValueError: the method's chain does not prune the planned number of weights.
    """
    progress = schedule.progress(step)
    target = schedule.active_at(step, masks.total)

    def update(active: int, target: int) -> Update:
        return Update(step, active, max(0, active - target), progress, seed)

    if scope == "global":
        groups = [(slice(None), masks.active, target)]
    else:
        targets = apportion(min(target, masks.active), initial_counts, masks.counts)
        pairs = zip(masks.counts, targets, strict=True)
        groups = [(slice(i, i + 1), before, after) for i, (before, after) in enumerate(pairs)]
    chains = [
        (layers, checked_chain(method, update(before, after))) for layers, before, after in groups if before > after
    ]
    return Plan(chains, method.exchange(update(masks.active, target)))


def find_obstacle(plan: Plan, method: Method, masks: Masks) -> str | None:
    """Say why the present gradients do not allow the update, or None if they do; all processes call this together."""
    grads = [g for w in masks.weights if (g := local_gradient(w.parameter)) is not None]
    grads = [g if g.layout == torch.strided else g.coalesce().values() for g in grads]
    present, not_finite = masks.processes.sum([len(grads), not passes.all_finite(grads)])
    if not_finite:
        return "a gradient is not finite"
    if not present and plan.needs_gradient:
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


def choose(plan: Plan, masks: Masks, grad_scale: float, averages: Averages) -> Choice:
    """Carry out a plan on the present weights and gradients, without changing anything.

    All processes call this together.

    Args:
        plan: the plan.
        masks: the masks before the update.
        grad_scale: the factor to divide stored gradients by.
        averages: the method's running averages of gradients.

    Raises:
        RuntimeError: processes that hold the same weights chose different ones.
    """
    processes = masks.processes
    layers = flatten(masks.weights, True, grad_scale, processes.owned, averages)
    active = masks.flat(layers)
    for group, chain in plan.chains:
        pruned = run_chain(layers[group], active[group], chain, processes)
        active[group] = [p.logical_xor_(a) for p, a in zip(pruned, active[group], strict=True)]
    if plan.exchange is not None:
        active = run_exchange(layers, active, plan.exchange, processes)
    masks.check_same(active)
    return Choice(layers, active, plan.exchange is not None)
