"""What is known of a model's pruning wherever the model goes: a record for each pruner, found by the model's modules.

A pruner lives in the training loop. Whether the model got where it was to go is asked elsewhere: when it is saved or
compiled, or when the program ends. Records are therefore kept apart from pruners, and hold no model.
"""

from __future__ import annotations

import atexit
import os
import sys
import warnings
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from fggp.text import listing


@dataclass(eq=False)
class Record:
    """One pruner's aim and state.

    Args:
        prunable: the number of prunable weights.
        parameters: the number of all parameters of the model.
        method: the method's name.
        target: the sparsity it is to reach.
        end: the optimizer step at which it is reached.
        step: the optimizer steps so far.
        active: the number of weights that are not pruned.
        kept: the number of active weights of each weight tensor, by name.
        parameter_ids: the ids of the parameters that are pruned; they live as long as the pruner is attached.
        finished: whether the target is reached.
        optimizers: those that the pruner knows.
        others: the kinds of optimizers that changed the weights without the pruner.
        reported: whether the user has been told that it did not finish.
    """

    prunable: int
    parameters: int
    method: str = ""
    target: float = 0.0
    end: int = 0
    step: int = 0
    active: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    parameter_ids: frozenset[int] = frozenset()
    finished: bool = False
    optimizers: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    others: list[str] = field(default_factory=list)
    reported: bool = False

    @property
    def sparsity(self) -> float:
        """The share of the prunable weights that is pruned."""
        return 1 - self.active / self.prunable

    def certificate(self) -> dict[str, str]:
        """What a file of the model says about its pruning: texts by name."""
        return {
            "pruning-method": self.method,
            "pruning-target": f"{self.target:.6g}",
            "pruning-reached": f"{self.sparsity:.6g}",
            "pruning-step": f"{self.step} of {self.end}",
            "pruning-coverage": f"{self.prunable / self.parameters:.6g}",
        }

    def shortfall(self) -> str | None:
        """Say how the pruning stopped before its target, or None if it did not."""
        if self.finished:
            return None
        if self.step == 0:
            return (
                f"nothing was pruned: the Pruner's optimizer never made a step, so the sparsity is {self.sparsity:.1%} "
                f"instead of {self.target:.1%}. Give the Pruner the optimizer whose step() is called"
            )
        return (
            f"pruning got to step {self.step} of {self.end}: the sparsity is {self.sparsity:.1%} instead of "
            f"{self.target:.1%}. Train on, set end= to the number of optimizer steps that are made, or call "
            f"pruner.finish() to prune the rest at once"
        )


_places: weakref.WeakKeyDictionary[nn.Module, dict[str, tuple[Record, str]]] = weakref.WeakKeyDictionary()
"""For each module that holds pruned weights, and for those of copies: attribute to (record, weight name)."""

_attached: weakref.WeakKeyDictionary[Any, Record] = weakref.WeakKeyDictionary()
"""The record of each pruner whose hooks are on, as long as the pruner lives."""

_unfinished: set[Record] = set()
_seen: weakref.WeakKeyDictionary[Any, tuple[int, int]] = weakref.WeakKeyDictionary()
_generation = 0

Place = tuple[nn.Module, str, str]
"""Where a weight lies: its module, its attribute there, and its name."""


def register(record: Record, places: Iterable[Place]) -> None:
    """Make a record known as that of some weights, in place of an earlier one.

    Args:
        record: the pruner's record.
        places: where the weights lie.
    """
    global _generation
    if _generation == 0:
        register_optimizer_step_post_hook(_after_any_step)
        atexit.register(_at_exit)
    _generation += 1
    for module, attribute, name in places:
        _places.setdefault(module, {})[attribute] = (record, name)
    if not record.finished:
        _unfinished.add(record)


def attach(pruner: object, record: Record) -> None:
    """Note that a pruner's hooks are on."""
    _attached[pruner] = record


def detach(pruner: object) -> None:
    """Note that they are off."""
    _attached.pop(pruner, None)


def settle(record: Record) -> None:
    """Note that the user knows how far a pruner got: it finished, or it was said."""
    record.reported = True
    _unfinished.discard(record)


def complaints(model: nn.Module) -> Iterator[str]:
    """What is wrong with the pruning of a model that is about to be used: unfinished, or zeros that were filled."""
    for record, found in _of(model).items():
        shortfall = record.shortfall()
        if shortfall is not None and not record.reported:
            settle(record)
            yield shortfall
        filled = {}
        for name, parameter in found.items():
            if name in record.kept and not hasattr(parameter, "placements"):  # not a part of a sharded weight
                extra = int(parameter.detach().count_nonzero()) - record.kept[name]
                if extra > 0:
                    filled[name] = extra
        if filled:
            yield filled_again(filled)


def filled_again(counts: dict[str, int]) -> str:
    """Say that pruned weights are not zero.

    Args:
        counts: how many, by weight name.
    """
    return (
        f"{sum(counts.values()):,} pruned weights are not zero any more, in {listing(list(counts))}: something wrote "
        f"to them since the last optimizer step (weights loaded back, averaged, or merged with an adapter). Load the "
        f"pruner's state that was saved with these weights (pruner.load_state_dict), or call pruner.zero() to zero "
        f"them"
    )


def certificate(model: nn.Module) -> dict[str, str]:
    """What a file of this model says about its pruning; nothing if no pruner is known, or several are."""
    found = list(_of(model))
    return found[0].certificate() if len(found) == 1 else {}


def _of(model: nn.Module) -> dict[Record, dict[str, Tensor]]:
    """The records of a model's weights, each with the weights that are its own, by name."""
    found: dict[Record, dict[str, Tensor]] = {}
    for module in model.modules():
        for attribute, (record, name) in _places.get(module, {}).items():
            parameter = module._parameters.get(attribute)
            if parameter is not None:
                found.setdefault(record, {})[name] = parameter
    return found


def _after_any_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Notice an optimizer that changes pruned weights and that the pruner does not know."""
    if torch.compiler.is_compiling():  # no pruner's business: its own hooks are outside compiled graphs
        return
    looked_at = (_generation, sum(len(group["params"]) for group in optimizer.param_groups))
    if _seen.get(optimizer) == looked_at:
        return
    _seen[optimizer] = looked_at
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for record in list(_attached.values()):
        if optimizer not in record.optimizers and not held.isdisjoint(record.parameter_ids):
            record.others.append(type(optimizer).__name__)
            warnings.warn(
                f"{type(optimizer).__name__} changes the weights of a Pruner that does not know it: pruned weights are "
                f"filled again and its steps are not counted. Call pruner.attach(optimizer)",
                RuntimeWarning,
                stacklevel=3,
            )


def _at_exit() -> None:
    """Say at the end of the program which pruners did not reach their targets."""
    if os.environ.get("RANK", "0") != "0":
        return
    messages = [text for record in _unfinished if (text := record.shortfall()) is not None]
    if messages:
        more = f" ({len(messages) - 1} more Pruners did not reach their targets)" if len(messages) > 1 else ""
        print(f"fggp: {messages[0]}{more}", file=sys.stderr)
