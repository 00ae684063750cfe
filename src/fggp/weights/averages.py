"""Running averages over optimizer steps, for methods that look at more than one mini-batch's gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fggp.weights.dtensor import local, local_gradient, own_part, spread_as
from fggp.weights.prunable import Prunable


@dataclass(frozen=True)
class Average:
    """An exponential average, over all optimizer steps so far, of something computed from a weight's gradient.

    At every step a ← decay·a + (1 − decay)·of(g), from a = 0. It is not divided by 1 − decayᵗ: that is one factor for
    all weights, which no ranking sees.

    Args:
        name: what scores read it by, `fggp.weights.layers.Block.average`.
        of: maps gradients to a tensor of their shape, elementwise; float32, or float64 where the weights are.
        decay: in [0, 1); it looks back over some 1 / (1 − decay) steps.
    """

    name: str
    of: Callable[[Tensor], Tensor]
    decay: float

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay!r} of average {self.name!r} must lie in [0, 1)")


class Averages:
    """The averages that a method asks for, of every prunable weight: 4 bytes a weight each (8 for float64).

    Of sharded weights each process keeps those of its own part.

    Args:
        kinds: what to average.
    """

    def __init__(self, kinds: Sequence[Average]) -> None:
        names = [kind.name for kind in kinds]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"a method keeps two averages named {min(twice)!r}: give them names of their own")
        self.kinds = tuple(kinds)
        self._values: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def update(self, weights: Sequence[Prunable], grad_scale: float) -> None:
        """Take in the gradients of a step; a missing one, and one that is not finite, counts as zero.

        Args:
            weights: their gradients are read.
            grad_scale: what these are to be divided by.
        """
        for w in weights:
            own = self.of(w)
            grad = local_gradient(w.parameter)
            if grad is not None:
                grad = (grad if grad.layout == torch.strided else grad.to_dense()).to(_dtype(w.parameter))
                grad = grad if grad_scale == 1 else grad / grad_scale
            for kind in self.kinds:
                if grad is None:
                    own[kind.name].mul_(kind.decay)
                else:  # an inf would never leave the average again
                    own[kind.name].lerp_(kind.of(grad).nan_to_num(0.0, 0.0, 0.0), 1 - kind.decay)

    def of(self, weight: Prunable) -> dict[str, Tensor]:
        """The averages of a weight by name, each of its shape (of this process's part of it) and where it is."""
        part = local(weight.parameter)
        known = self._values.setdefault(weight.name, {})
        for kind in self.kinds:
            value = known.get(kind.name)
            if value is None:
                known[kind.name] = torch.zeros_like(part, dtype=_dtype(part), requires_grad=False)
            elif value.device != part.device or value.dtype != _dtype(part):
                known[kind.name] = value.to(part.device, _dtype(part))
        return known

    def state_dict(self, weights: Sequence[Prunable]) -> dict[str, dict[str, Tensor]]:
        """Copies of the averages by weight and name: CPU tensors; of sharded weights DTensors, sharded alike."""
        return {w.name: {n: _copy(w.parameter, v) for n, v in self.of(w).items()} for w in weights if self.kinds}

    @staticmethod
    def restored(
        kinds: Sequence[Average], state: Mapping[str, Mapping[str, Tensor]], weights: Sequence[Prunable]
    ) -> Averages:
        """The averages that were saved; all processes call this together.

        Raises:
            KeyError, ValueError: they are not those of these weights.
        """
        restored = Averages(kinds)
        for w in weights if kinds else ():
            part, known = local(w.parameter), {}
            for kind in kinds:
                given = state[w.name][kind.name]
                if given.shape != w.parameter.shape or not given.is_floating_point():
                    raise ValueError(f"average {kind.name!r} of weight {w.name!r} has shape {list(given.shape)}")
                known[kind.name] = torch.zeros_like(part, dtype=_dtype(part), requires_grad=False).copy_(
                    own_part(w.parameter, given)
                )
            restored._values[w.name] = known
        return restored


def _copy(weight: Tensor, part: Tensor) -> Tensor:
    return spread_as(weight, part.clone()) if isinstance(weight, DTensor) else part.to("cpu", copy=True)


def _dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32
