"""Checks of the Pruner's arguments, and the schedule that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fggp.masks.starts import Init
from fggp.methods import Method, OneShot
from fggp.schedule import Curve, Schedule
from fggp.weights.processes import Processes


def schedule_for(
    method: Method | OneShot,
    sparsity: float,
    begin: int | None,
    end: int | None,
    every: int | None,
    curve: Curve,
    init_sparsity: float | None,
    init: Init,
) -> Schedule:
    """The schedule of a method; a one-shot method's never changes the masks.

    Raises:
        ValueError: a number is outside its range, or an argument does not apply to a one-shot method.
        TypeError: a number is missing, or of another type.
    """
    steps = {"begin": begin, "end": end, "every": every}
    if isinstance(method, OneShot):
        given = [name for name, value in {**steps, "init_sparsity": init_sparsity}.items() if value is not None]
        if given or init != "erk":
            raise ValueError(
                f"{(given or ['init'])[0]} does not apply to method={method.name!r}, which acts once, when the Pruner "
                f"is made: leave it out"
            )
        return Schedule(sparsity, begin=0, end=1, every=1, init_sparsity=sparsity, curve=curve, last=0)
    missing = [name for name, value in steps.items() if value is None]
    if missing or begin is None or end is None or every is None:
        raise TypeError(f"method={method.name!r} needs {', '.join(missing)}: numbers of optimizer steps")
    if init_sparsity is None:
        init_sparsity = sparsity if method.constant else 0.0
    schedule = Schedule(sparsity, begin, end, every, init_sparsity, curve)
    return replace(schedule, last=method.last_update(end))


def check_scope(scope: Any, method: Method | OneShot) -> None:
    """Refuse an unknown scope, and any choice of scope for a one-shot method.

    Raises:
        ValueError: it is one.
    """
    if scope not in ("global", "layer"):
        raise ValueError(f"scope={scope!r} must be 'global' or 'layer'")
    if isinstance(method, OneShot) and scope != "global":
        raise ValueError(f"scope={scope!r} does not apply to method={method.name!r}: leave it out")


def check_one_shot(method: OneShot, sparsity: Any, floor: Any, processes: Processes) -> None:
    """Refuse what a one-shot method cannot do.

    Raises:
        ValueError: weights are sharded, or there are several targets or a floor.
    """
    if processes.sharded:
        raise ValueError(
            f"method={method.name!r} needs unsharded weights: make a Pruner with it before the model is "
            f"sharded, and then a second one with init=<masks of the first> and a method that is not one-shot"
        )
    for name, value in {"sparsity": sparsity if isinstance(sparsity, Mapping) else None, "floor": floor}.items():
        if value is not None:
            raise ValueError(f"{name}={value!r} does not apply to method={method.name!r}: give one number as sparsity")


def check_seed(seed: Any) -> None:
    """Refuse a seed that is no int.

    Raises:
        TypeError: it is none.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed={seed!r} must be an int")
