"""The saved state of a pruner: what it holds, as plain values and tensors, and how it is read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fggp.acceleration.measured import Measured
from fggp.masks.packing import pack, unpack
from fggp.methods import REGISTRY, Method, OneShot
from fggp.pruner.targets import Budget, Targets, split_into_budgets
from fggp.pruner.update import Scope
from fggp.schedule import CURVES, Curve, Schedule
from fggp.weights.averages import Averages
from fggp.weights.dtensor import is_dtensor, own_part, placed_as
from fggp.weights.gradients import LastGradients
from fggp.weights.granularity import Granularity
from fggp.weights.prunable import Prunable

VERSION = 1
"""The version of the state that this module writes, and the only one that it reads."""


@dataclass(frozen=True)
class PrunerState:
    """All that a resumed run needs besides the states of model and optimizer.

    Args:
        step: optimizer steps counted so far.
        last_update: the step of the latest update, 0 before the first.
        overdue: whether an update was postponed and is still due.
        targets: the targets in use, with their schedules.
        method: the method in use.
        scope: which weights are ranked together.
        seed: the pruner's seed.
        granularity: what is pruned as one; None: single weights.
        initial_counts: the active weights of each layer when pruning started.
        masks: the masks by weight name, bool; those of sharded weights are DTensors.
        averages: the method's running averages of gradients.
        gradients: the last gradients of weights that were once without one.
        measured: what was measured of an accelerated model's layers.
    """

    step: int
    last_update: int
    overdue: bool
    targets: Targets
    method: Method | OneShot
    scope: Scope
    seed: int
    granularity: Granularity | None
    initial_counts: list[int]
    masks: Mapping[str, Tensor]
    averages: Averages
    gradients: LastGradients
    measured: Measured

    def to_dict(self, weights: Sequence[Prunable]) -> dict[str, Any]:
        """Plain values and copies of the tensors, for ``weights_only=True``.

        Args:
            weights: the weights, in the order that ranks ties.
        """
        return {
            "version": VERSION,
            "step": self.step,
            "last_update": self.last_update,
            "overdue": self.overdue,
            "schedule": _schedule_to_dict(self.targets.schedule),
            "targets": [
                [b.pattern, float(b.schedule.sparsity), float(b.schedule.init_sparsity)] for b in self.targets.budgets
            ],
            "method": {"name": self.method.name, **self.method.settings()},
            "floor": self.targets.floor,
            "scope": self.scope,
            "seed": self.seed,
            "granularity": _granularity_to_dict(self.granularity),
            "start": list(self.initial_counts),
            "shapes": _shapes(weights),
            "masks": {name: _pack(m) for name, m in self.masks.items()},
            "averages": self.averages.state_dict(weights),
            "gradients": self.gradients.state_dict(weights),
            "measured": self.measured.state_dict(),
        }

    @staticmethod
    def from_dict(
        state: Mapping[str, Any],
        weights: Sequence[Prunable],
        method: Method | OneShot,
        targets: Targets,
        granularity: Granularity | None,
    ) -> PrunerState:
        """Read and check what `to_dict` returned; all processes call this together.

        Args:
            state: the saved state.
            weights: the pruner's own weights.
            method: the pruner's own method, which a state of a custom method needs.
            targets: the pruner's own targets: a state of a custom curve needs their curve.
            granularity: the pruner's own, which must be that of the state.

        Raises:
            ValueError: the state is damaged, of other weights or granularity, or of a custom method or curve that is
                not the pruner's own.
        """
        try:
            return PrunerState._read(state, weights, method, targets, granularity)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"state is damaged, or not the state_dict of a Pruner: {error!r}") from error

    @staticmethod
    def _read(
        state: Mapping[str, Any],
        weights: Sequence[Prunable],
        method: Method | OneShot,
        targets: Targets,
        granularity: Granularity | None,
    ) -> PrunerState:
        if state["version"] != VERSION:
            raise ValueError(f"state has version {state['version']!r}; this fggp reads version {VERSION}")
        _check_shapes(state["shapes"], weights)
        saved = state.get("granularity")  # earlier versions pruned single weights
        if saved != _granularity_to_dict(granularity):
            raise ValueError(
                f"state was saved with granularity={_granularity_name(saved)}; this Pruner has "
                f"granularity={granularity}: make it with the same"
            )
        method = _restore_method(state["method"], method)
        schedule = _restore_schedule(state["schedule"], targets.schedule)
        budgets = _restore_budgets(state.get("targets"), schedule, weights)  # earlier versions had one target
        targets = Targets.of(weights, budgets, state.get("floor", targets.floor))
        step, last_update, overdue = int(state["step"]), int(state["last_update"]), bool(state["overdue"])
        scope, seed, initial_counts = state["scope"], int(state["seed"]), [int(n) for n in state["start"]]
        kinds = method.averages() if isinstance(method, Method) else ()
        averages = Averages.restored(kinds, state.get("averages", {}), weights)  # earlier versions saved none
        gradients = LastGradients.restored(state.get("gradients", {}), weights)
        measured = Measured()
        measured.load_state_dict(state.get("measured", {}))
        if scope not in ("global", "layer") or len(initial_counts) != len(weights):
            raise ValueError(f"state is damaged: scope={scope!r}, start={state['start']!r}")
        masks = {w.name: _restore_mask(state["masks"][w.name], w) for w in weights}
        return PrunerState(
            step,
            last_update,
            overdue,
            targets,
            method,
            scope,
            seed,
            granularity,
            initial_counts,
            masks,
            averages,
            gradients,
            measured,
        )


def _schedule_to_dict(schedule: Schedule) -> dict[str, Any]:
    return {
        "sparsity": float(schedule.sparsity),
        "begin": schedule.begin,
        "end": schedule.end,
        "every": schedule.every,
        "init_sparsity": float(schedule.init_sparsity),
        "curve": _curve_name(schedule.curve),
        "last": schedule.last,
    }


def _restore_schedule(state: Mapping[str, Any], own: Schedule) -> Schedule:
    settings = dict(state)
    name = settings.pop("curve")
    if name not in CURVES and name != _curve_name(own.curve):
        raise ValueError(f"state was saved with the schedule {name!r}: make the Pruner with it")
    return Schedule(**settings, curve=CURVES.get(name, own.curve))


def _restore_budgets(state: Any, schedule: Schedule, weights: Sequence[Prunable]) -> tuple[Budget, ...]:
    if state is None:
        return split_into_budgets(weights, schedule.sparsity, [schedule])
    schedules = [replace(schedule, sparsity=final, init_sparsity=initial) for _, final, initial in state]
    return split_into_budgets(weights, {pattern: final for pattern, final, _ in state}, schedules)


def _curve_name(curve: Curve) -> str:
    return getattr(curve, "__qualname__", type(curve).__qualname__)


def _restore_method(state: Mapping[str, Any], own: Method | OneShot) -> Method | OneShot:
    settings = dict(state)
    name = settings.pop("name")
    # The own method first: a custom one may have inherited the name of a built-in one.
    if name == own.name:
        return own if settings == own.settings() else type(own)(**settings)
    if name in REGISTRY and issubclass(REGISTRY[name], Method):
        return REGISTRY[name](**settings)
    raise ValueError(f"state was saved with the method {name!r} {settings}: make the Pruner with it")


def _granularity_to_dict(granularity: Granularity | None) -> dict[str, Any] | None:
    return None if granularity is None else {"name": type(granularity).__name__, **asdict(granularity)}


def _granularity_name(saved: Any) -> str:
    if saved is None:
        return "None"
    settings = dict(saved)
    name = settings.pop("name")
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in settings.items())})"


def _shapes(weights: Sequence[Prunable]) -> dict[str, list[int]]:
    """The full shapes of the weights by name, in the order that ranks ties."""
    return {w.name: list(w.parameter.shape) for w in weights}


def _check_shapes(state: Mapping[str, Any], weights: Sequence[Prunable]) -> None:
    own = _shapes(weights)
    differ = sorted(n for n in {*state, *own} if state.get(n) != own.get(n))
    if differ:
        raise ValueError(
            f"state is of another model: weight {differ[0]!r} has shape {state.get(differ[0])} there and "
            f"{own.get(differ[0])} here"
        )
    if list(state) != list(own):
        raise ValueError("state is of another model: it has the same weights in another order")


def _pack(mask: Tensor) -> Tensor:
    """A copy of a mask at one bit a weight; a DTensor keeps its placement and one byte a weight."""
    return mask.clone() if is_dtensor(mask) else pack(mask)


def _restore_mask(state: Tensor, weight: Prunable) -> Tensor:
    """A mask from a packed tensor, or from a bool tensor, plain or DTensor; placed like the weight."""
    parameter = weight.parameter
    if state.dtype != torch.bool or state.shape != parameter.shape:
        state = unpack(state, parameter.shape)
    return placed_as(parameter, own_part(parameter, state))
