"""What a pruner's saved state is made of, and how each part of it is restored: plain values and tensors only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fggp.masks.masks import pack, unpack
from fggp.methods import REGISTRY, Method, OneShot
from fggp.schedule import CURVES, Curve, Schedule
from fggp.weights.dtensor import own_part
from fggp.weights.prunable import Prunable


def schedule_state(schedule: Schedule) -> dict[str, Any]:
    """A schedule, its curve by name."""
    return {
        "sparsity": float(schedule.sparsity),
        "begin": schedule.begin,
        "end": schedule.end,
        "every": schedule.every,
        "init_sparsity": float(schedule.init_sparsity),
        "curve": _curve_name(schedule.curve),
        "last": schedule.last,
    }


def restore_schedule(state: Mapping[str, Any], own: Schedule) -> Schedule:
    """The schedule that was saved; a curve that is not built in must be the pruner's own.

    Raises:
        ValueError: it is neither.
    """
    settings = dict(state)
    name = settings.pop("curve")
    if name not in CURVES and name != _curve_name(own.curve):
        raise ValueError(f"state was saved with the schedule {name!r}: make the Pruner with it")
    return Schedule(**settings, curve=CURVES.get(name, own.curve))


def _curve_name(curve: Curve) -> str:
    return getattr(curve, "__qualname__", type(curve).__qualname__)


def method_state(method: Method | OneShot) -> dict[str, Any]:
    """A method by name, with its hyper-parameters."""
    return {"name": method.name, **method.settings()}


def restore_method(state: Mapping[str, Any], own: Method | OneShot) -> Method | OneShot:
    """The method that was saved; one that is not built in must be the pruner's own.

    Raises:
        ValueError: it is neither.
    """
    settings = dict(state)
    name = settings.pop("name")
    # Its own first: a custom method may have inherited the name of a built-in one.
    if name == own.name:
        return own if settings == own.settings() else type(own)(**settings)
    if name in REGISTRY and issubclass(REGISTRY[name], Method):
        return REGISTRY[name](**settings)
    raise ValueError(f"state was saved with the method {name!r} {settings}: make the Pruner with it")


def shapes(weights: Sequence[Prunable]) -> dict[str, list[int]]:
    """The shapes of the whole weights by name, in the order that ranks ties."""
    return {w.name: list(w.parameter.shape) for w in weights}


def check_shapes(state: Mapping[str, Any], weights: Sequence[Prunable]) -> None:
    """Refuse a state of other weights.

    Raises:
        ValueError: they differ in name, shape or order.
    """
    own = shapes(weights)
    differ = sorted(n for n in {*state, *own} if state.get(n) != own.get(n))
    if differ:
        raise ValueError(
            f"state is of another model: weight {differ[0]!r} has shape {state.get(differ[0])} there and "
            f"{own.get(differ[0])} here"
        )
    if list(state) != list(own):
        raise ValueError("state is of another model: its weights come in another order")


def mask_state(mask: Tensor) -> Tensor:
    """A mask at one bit a weight; of a sharded weight a DTensor that is sharded alike, at one byte."""
    return mask.clone() if isinstance(mask, DTensor) else pack(mask)


def restore_mask(state: Tensor, weight: Prunable) -> Tensor:
    """This process's part of a mask that was saved packed, whole or sharded; all processes call this together.

    Raises:
        ValueError: it is no mask of this weight.
    """
    parameter = weight.parameter
    if state.dtype == torch.bool and state.shape == parameter.shape:
        return own_part(parameter, state)
    return own_part(parameter, unpack(state, parameter.shape))
