"""Running averages over optimizer steps, for methods that use more than one mini-batch's gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fggp.weights.dtensor import copy_placed_as, local, local_gradient, own_part
from fggp.weights.prunable import Prunable


@dataclass(frozen=True)
class Average:
    """An exponential average, over all optimizer steps so far, of something computed from a weight's gradient.

    At every step a ← decay·a + (1 − decay)·of(g), from a = 0. It is not divided by 1 − decayᵗ: that factor is the
    same for all weights and changes no ranking.

    Args:
        name: the name by which scores read it, with `fggp.weights.layers.Block.average`.
        of: maps gradients to a tensor of their shape, elementwise; float32, or float64 for float64 weights.
        decay: in [0, 1); the average spans about 1 / (1 − decay) steps.
    """

    name: str
    of: Callable[[Tensor], Tensor]
    decay: float

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay!r} of average {self.name!r} must lie in [0, 1)")


class Averages:
    """The averages that a method asks for, of every prunable weight: 4 bytes a weight each (8 for float64).

    For a sharded weight, each process keeps the averages of its own part.

    Args:
        kinds: what to average.

    Raises:
        ValueError: two of them have the same name.
    """

    def __init__(self, kinds: Sequence[Average]) -> None:
        names = [kind.name for kind in kinds]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"a method keeps two averages named {min(twice)!r}: give each a name of its own")
        self.kinds = tuple(kinds)
        self._values: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def update(self, weights: Sequence[Prunable], scales: Sequence[float]) -> None:
        """Add the gradients of a step. A missing gradient, and a value that is not finite, counts as zero.

        Args:
            weights: the weights whose gradients are read.
            scales: for each the factor to divide its gradient by.
        """
        for w, scale in zip(weights, scales, strict=True):
            own = self.of(w)
            grad = local_gradient(w.parameter)
            if grad is not None:
                grad = (grad if grad.layout == torch.strided else grad.to_dense()).to(_dtype_for(w.parameter))
                grad = grad if scale == 1 else grad / scale
            for kind in self.kinds:
                if grad is None:
                    own[kind.name].mul_(kind.decay)
                else:  # without nan_to_num an inf or NaN would stay in the average for good
                    own[kind.name].lerp_(kind.of(grad).nan_to_num(0.0, 0.0, 0.0), 1 - kind.decay)

    def of(self, weight: Prunable) -> dict[str, Tensor]:
        """The averages of a weight by name, with the shape and on the device of this process's part of it."""
        part = local(weight.parameter)
        known = self._values.setdefault(weight.name, {})
        for kind in self.kinds:
            value = known.get(kind.name)
            if value is None:
                known[kind.name] = torch.zeros_like(part, dtype=_dtype_for(part), requires_grad=False)
            elif value.device != part.device or value.dtype != _dtype_for(part):
                known[kind.name] = value.to(part.device, _dtype_for(part))
        return known

    def state_dict(self, weights: Sequence[Prunable]) -> dict[str, dict[str, Tensor]]:
        """Copies of the averages by weight and name: CPU tensors; for sharded weights DTensors, placed like these."""
        return {
            w.name: {n: copy_placed_as(w.parameter, v) for n, v in self.of(w).items()} for w in weights if self.kinds
        }

    @staticmethod
    def restored(
        kinds: Sequence[Average], state: Mapping[str, Mapping[str, Tensor]], weights: Sequence[Prunable]
    ) -> Averages:
        """Read saved averages; all processes call this together.

        Args:
            kinds: what the averages are of.
            state: what `state_dict` returned.
            weights: the weights that the averages belong to.

        Raises:
            KeyError: an average is missing.
            ValueError: an average does not have its weight's shape, or is no floating-point tensor.
        """
        restored = Averages(kinds)
        for w in weights if kinds else ():
            part, known = local(w.parameter), {}
            for kind in kinds:
                given = state[w.name][kind.name]
                if given.shape != w.parameter.shape or not given.is_floating_point():
                    raise ValueError(
                        f"average {kind.name!r} of weight {w.name!r} is {given.dtype} {list(given.shape)}: it must be "
                        f"a floating-point tensor {list(w.parameter.shape)}"
                    )
                known[kind.name] = torch.zeros_like(part, dtype=_dtype_for(part), requires_grad=False).copy_(
                    own_part(w.parameter, given)
                )
            restored._values[w.name] = known
        return restored


def _dtype_for(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32
