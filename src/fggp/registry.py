"""What is known of a model's pruning wherever the model goes: a record for each pruner, found by the model's modules.

A pruner lives in the training loop. Whether the model got where it was to go is asked elsewhere: when it is saved or
compiled, or when the program ends. Records are therefore kept apart from pruners, and hold no model.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from fggp.caller import warn_caller
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
        parameter_names: names by the ids of the pruned parameters, which live as long as the pruner is attached.
        finished: whether the target is reached.
        optimizers: those that the pruner knows.
        idle: the kinds of those that have not stepped since the last complete step, if others have.
        others: the kinds of optimizers that changed the weights without the pruner.
        reported_at: the step at which the user was told that the target is not reached.
        step_of_stranger: the pruner's step when an optimizer that it does not know made its latest step.
    """

    prunable: int
    parameters: int
    method: str = ""
    target: float = 0.0
    end: int = 0
    step: int = 0
    active: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    parameter_names: dict[int, str] = field(default_factory=dict)
    finished: bool = False
    optimizers: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    idle: tuple[str, ...] = ()
    others: list[str] = field(default_factory=list)
    reported_at: int | None = None
    step_of_stranger: int = -1

    @property
    def sparsity(self) -> float:
        """The share of the prunable weights that is pruned."""
        return 1 - self.active / self.prunable

    def certificate(self, reached: float) -> dict[str, str]:
        """What a file of the model says about its pruning: texts by name.

        Args:
            reached: the share of zeros that the model's prunable weights really have.
        """
        return {
            "pruning-method": self.method,
            "pruning-target": f"{self.target:.6g}",
            "pruning-reached": f"{reached:.6g}",
            "pruning-step": f"{self.step} of {self.end}",
            "pruning-coverage": f"{self.prunable / self.parameters:.6g}",
        }

    def shortfall(self) -> str | None:
        """Say how the pruning stopped before its target, or None if it did not."""
        if self.finished:
            return None
        reached = f"the sparsity is {self.sparsity:.1%} instead of {self.target:.1%}"
        if self.idle:
            return (
                f"{reached}, because the Pruner has several optimizers and {', '.join(self.idle)} did not step: a step "
                f"is complete when each has stepped. Leave out an optimizer that holds no prunable weight"
            )
        if self.step == 0:
            return (
                f"nothing was pruned: the Pruner's optimizer never made a step, so {reached}. Give the Pruner the "
                f"optimizer whose step() is called"
            )
        if self.step >= self.end:
            return (
                f"the schedule ended at step {self.end} and {reached}. Call pruner.reschedule(end=…) to prune the rest "
                f"step by step, or pruner.finish() to prune it at once"
            )
        return (
            f"pruning got to step {self.step} of {self.end}: {reached}. Train on, set end= to the number of optimizer "
            f"steps that are made, or call pruner.finish() to prune the rest at once"
        )

    def news(self) -> str | None:
        """`shortfall`, unless the user was told at this step; from now on the user was."""
        shortfall = None if self.reported_at == self.step else self.shortfall()
        if shortfall is not None:
            self.reported_at = self.step
        return shortfall


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


def attach(pruner: object, record: Record) -> None:
    """Note that a pruner's hooks are on."""
    _attached[pruner] = record


def detach(pruner: object) -> None:
    """Note that they are off."""
    _attached.pop(pruner, None)


def settle(record: Record, left_to_say: bool = False) -> None:
    """Note whether anything is left to be said about a pruner at the end of the program."""
    (_unfinished.add if left_to_say else _unfinished.discard)(record)


def complaints(model: nn.Module) -> Iterator[str]:
    """What is wrong with the pruning of a model that is about to be used: unfinished, or zeros that were filled."""
    for record, found in _of(model).items():
        shortfall = record.news()
        if shortfall is not None:
            yield shortfall
        filled = {}
        for name, parameter in found.items():
            if name in record.kept and not _is_part(parameter):
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


class Certified:
    """A model that has its certificate itself, because its weights were made of those that a pruner knows.

    Attributes:
        certificate: that of the model with those weights.
    """

    certificate: Mapping[str, str]


def certificate(model: nn.Module) -> dict[str, str]:
    """What a file of this model says about its pruning; nothing if no pruner is known, or several are."""
    if isinstance(model, Certified):
        return dict(model.certificate)
    found = _of(model)
    if len(found) != 1:
        return {}
    [(record, weights)] = found.items()
    if any(_is_part(p) for p in weights.values()):
        return record.certificate(record.sparsity)
    zeros = sum(p.numel() - int(p.detach().count_nonzero()) for p in weights.values())
    return record.certificate(zeros / sum(p.numel() for p in weights.values()))


def _of(model: nn.Module) -> dict[Record, dict[str, Tensor]]:
    """The records of a model's weights, each with the weights that are its own, by name."""
    found: dict[Record, dict[str, Tensor]] = {}
    for module in model.modules():
        for attribute, (record, name) in _places.get(module, {}).items():
            parameter = module._parameters.get(attribute)
            if parameter is not None:
                found.setdefault(record, {})[name] = parameter
    return found


def _is_part(parameter: Tensor) -> bool:
    """Whether a parameter is a DTensor, of which this process may hold only a part."""
    return hasattr(parameter, "placements")


def _after_any_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Notice an optimizer that changes pruned weights and that the pruner does not know."""
    if torch.compiler.is_compiling():  # no pruner's business: its own hooks are outside compiled graphs
        return
    looked_at = (_generation, sum(len(group["params"]) for group in optimizer.param_groups))
    if _seen.get(optimizer) == looked_at:
        return
    parameters = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    strange = [
        record
        for record in list(_attached.values())
        if optimizer not in record.optimizers and not parameters.keys().isdisjoint(record.parameter_names)
    ]
    if strange and all(_is_harmless(record, optimizer, parameters) for record in strange):
        return
    _seen[optimizer] = looked_at
    for record in strange:
        record.others.append(type(optimizer).__name__)
        warn_caller(
            f"{type(optimizer).__name__} changes the weights of a Pruner that does not know it: pruned weights are "
            f"filled again and its steps are not counted. Call pruner.attach(optimizer)",
            RuntimeWarning,
        )


def _is_harmless(record: Record, optimizer: Optimizer, parameters: dict[int, Tensor]) -> bool:
    """Whether a strange optimizer's step changed nothing, or was made of a step that the pruner counted.

    The latter is a wrapper of an optimizer that the pruner knows.
    """
    trains = [g for g in optimizer.param_groups if g.get("lr", 1) != 0 and any(p.grad is not None for p in g["params"])]
    if not trains:
        return True
    counted, record.step_of_stranger = record.step != record.step_of_stranger, record.step
    own = [(name, parameters[i]) for i, name in record.parameter_names.items() if i in parameters]
    filled = any(not _is_part(p) and int(p.detach().count_nonzero()) > record.kept[name] for name, p in own)
    return counted and not filled and record.step > 0


def _at_exit() -> None:
    """Say at the end of the program which pruners did not reach their targets."""
    if os.environ.get("RANK", "0") != "0":
        return
    if any(record.step == 0 for record in _unfinished):
        # A pruner that is gone without a step was made to look at something, such as whether settings fit a model.
        gc.collect()
        alive = set(_attached.values())
        _unfinished.difference_update([r for r in _unfinished if r.step == 0 and not r.others and r not in alive])
    messages = [text for record in _unfinished if (text := record.news()) is not None]
    if messages:
        more = f" ({len(messages) - 1} more Pruners did not reach their targets)" if len(messages) > 1 else ""
        print(f"fggp: {messages[0]}{more}", file=sys.stderr)
