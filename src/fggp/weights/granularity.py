"""What is pruned as one: single weights, blocks of input channels, whole rows, or N of M; and the grid on a weight.

Along the input lies the dimension over which a layer's product sums: dimension 1 of a convolution [out, in, …] and of
a linear layer [out, in]; dimension 0 of a transposed convolution [in, out, …] and of the Transformers library's Conv1D
[in, out]; the last one of a stack of matrices [n, out, in] (experts).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from fggp.weights.grid import Grid
from fggp.weights.prunable import Prunable


@dataclass(frozen=True)
class Blocks:
    """Blocks of consecutive input channels at one kernel position, of one output channel.

    The last block of a layer whose input channels do not divide is shorter: a first convolution of 3 channels has
    blocks of 3. The channels of a depthwise convolution, which have one input channel each, form blocks among
    themselves. A weight without an input (one dimension) is pruned in single weights.

    Args:
        size: the weights in a block, at least 2; 4 for VNNI's int8 instructions.
    """

    size: int

    def __post_init__(self) -> None:
        _check_count("size", self.size, 2, math.inf)

    def grid(self, weight: Prunable) -> Grid:
        """The grid of a weight's blocks."""
        axes = _axes(weight)
        steps = [1] * weight.parameter.ndim
        if axes is not None:
            # Of a transposed convolution in groups, blocks end where its groups do.
            ends = axes.inputs == weight.parameter.shape[axes.dim]
            steps[axes.dim] = self.size if axes.depthwise or ends else math.gcd(self.size, axes.inputs)
        return Grid(tuple(weight.parameter.shape), tuple(steps))


@dataclass(frozen=True)
class Rows:
    """Whole rows: all weights of an output channel (a filter), or of an output of a linear layer.

    A weight with one dimension is pruned in single weights.
    """

    def grid(self, weight: Prunable) -> Grid:
        """The grid of a weight's rows."""
        axes = _axes(weight)
        steps = [1] * weight.parameter.ndim
        if axes is not None:
            steps[axes.dim] = axes.inputs
            for d in axes.kernel:
                steps[d] = weight.parameter.shape[d]
        return Grid(tuple(weight.parameter.shape), tuple(steps))


@dataclass(frozen=True)
class NM:
    """N:M sparsity: of each M consecutive input channels at one kernel position, at most N weights stay.

    Single weights are pruned. Those that exceed N in their group go first, so the pattern holds from the step at which
    the sparsity reaches that of the pattern, 1 − N/M where M divides all layers' input channels. A last, shorter group
    keeps at most N too; a group of N or fewer, as in a depthwise convolution, is free.

    Args:
        n: how many weights of a group stay at most.
        m: the weights in a group.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        _check_count("m", self.m, 2, math.inf)
        _check_count("n", self.n, 1, self.m - 1)

    def grid(self, weight: Prunable) -> Grid:
        """The grid of a weight's groups of M, with the limit N."""
        axes = _axes(weight)
        steps = [1] * weight.parameter.ndim
        if axes is not None:
            ends = axes.inputs == weight.parameter.shape[axes.dim]
            steps[axes.dim] = self.m if ends else math.gcd(self.m, axes.inputs)
        return Grid(tuple(weight.parameter.shape), tuple(steps), self.n)


Granularity = Blocks | Rows | NM
"""What is pruned as one, if that is not single weights."""


def divide(weights: Sequence[Prunable], granularity: Any) -> None:
    """Note in each weight what is pruned as one.

    Args:
        weights: the weights; changed in place.
        granularity: `Blocks`, `Rows` or `NM`; None: single weights.

    Raises:
        TypeError: granularity is none of these.
        ValueError: a weight cannot be pruned in groups.
    """
    if granularity is not None and not isinstance(granularity, Granularity):
        raise TypeError(
            f"granularity={granularity!r} must be fggp.Blocks(size), fggp.Rows(), fggp.NM(n, m), or None for single "
            f"weights"
        )
    for w in weights:
        if granularity is not None and w.norm_dim is not None:
            raise ValueError(
                f"granularity={granularity} does not apply to {w.name!r}: it is the direction of a weight norm, which "
                f"needs a weight in each row. Leave it out with exclude={w.name!r}"
            )
    for w in weights:
        w.grid = None if granularity is None else granularity.grid(w)


class _Axes(NamedTuple):
    """The dimension along the input, how many of its indices one output reads, and the dimensions of the kernel."""

    dim: int
    inputs: int
    kernel: tuple[int, ...]
    depthwise: bool = False


def _axes(weight: Prunable) -> _Axes | None:
    """Where the input of a weight lies; None if it has no input."""
    shape = weight.parameter.shape
    if len(shape) < 2:
        return None
    modules = [module for module, *_ in weight.owners]
    for module in modules:
        if isinstance(module, nn.modules.conv._ConvNd):
            kernel = tuple(range(2, len(shape)))
            depthwise = module.groups == module.in_channels == module.out_channels > 1
            if module.transposed:
                return _Axes(0, shape[0] // module.groups, kernel, depthwise)
            return _Axes(0 if depthwise else 1, shape[1], kernel, depthwise)
        if any(k.__name__ == "Conv1D" and k.__module__.startswith("transformers.") for k in type(module).__mro__):
            return _Axes(0, shape[0], ())
    if len(shape) == 3 and weight.matrices == shape[0]:
        return _Axes(2, shape[2], ())
    return _Axes(1, shape[1], tuple(range(2, len(shape))))


def _check_count(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        limits = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{name}={value!r} must be an int, {limits}: a number of weights")
