"""What 8 bits stand for: the ranges of a network's values on examples of its input."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor

from fggp.ship.graph.interpret import steps
from fggp.ship.graph.operations import Graph, Value
from fggp.ship.graph.quantized import Quantization

LEVELS = 255
"""The largest whole number."""
BINS = 2048
"""Of the histogram in which clipped ranges are compared."""
SHARES = torch.linspace(0.2, 1.0, 81).tolist()
"""Of the whole range, which clipping may leave."""
LEAST_SCALE = 1e-30
"""Below it, an inverse would not be exact enough; values as small are as good as zero."""


class Range:
    """The range of some values that share what 8 bits stand for."""

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.counts: Tensor | None = None

    def include(self, x: Tensor) -> None:
        """Widen it, so that it has all of x."""
        if x.numel():
            low, high = (float(limit) for limit in x.aminmax())
            self.low, self.high = min(self.low, low), max(self.high, high)

    def join(self, other: Range) -> None:
        """Widen it, so that it has another's whole range."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def width(self) -> float:
        """Its length, with 0."""
        return self.high - self.low

    def count(self, x: Tensor) -> None:
        """Add x to the histogram. The range is complete."""
        if self.high > self.low:
            found = torch.histc(x.float(), BINS, self.low, self.high).double()
            self.counts = found if self.counts is None else self.counts + found

    def quantization(self) -> Quantization:
        """The whole range, or the part of it with the least squared error of what was counted."""
        whole = quantization_of(self.low, self.high)
        if self.counts is None:
            return whole
        centers = torch.linspace(self.low, self.high, 2 * BINS + 1, dtype=torch.float64)[1::2]
        clipped = [quantization_of(self.low * share, self.high * share) for share in SHARES]
        return min(clipped, key=lambda q: _error(q, centers, self.counts))


def _error(q: Quantization, x: Tensor, counts: Tensor | None) -> float:
    assert counts is not None
    rounded = ((x / q.scale).round() + q.zero).clamp(0, LEVELS)
    return float((counts * ((rounded - q.zero) * q.scale - x).square()).sum())


def quantization_of(low: float, high: float) -> Quantization:
    """What 8 bits stand for in a range, which is widened to have 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(torch.tensor((high - low) / LEVELS, dtype=torch.float32))
    if scale < LEAST_SCALE:
        return Quantization(1.0, 0)
    return Quantization(scale, min(LEVELS, max(0, round(-low / scale))))


@torch.no_grad()
def observed(graph: Graph, batches: Sequence[Sequence[Tensor]], wanted: Container[Value]) -> dict[Value, Range]:
    """The whole ranges of some values, while a network runs on examples.

    Args:
        graph: the network.
        batches: of its inputs.
        wanted: the values.

    Raises:
        ValueError: a value is not finite.
    """
    ranges: dict[Value, Range] = {}
    for inputs in batches:
        for v, x in steps(graph, inputs):
            if v not in wanted:
                continue
            if not bool(x.isfinite().all()):
                raise ValueError(
                    f"batches: on one of them, {v.module or v.name} returns a number that is not finite; "
                    f"a range cannot be found from it"
                )
            ranges.setdefault(v, Range()).include(x)
    return ranges


@torch.no_grad()
def calibrated(
    graph: Graph,
    batches: Sequence[Sequence[Tensor]],
    groups: Mapping[Value, Value],
    ranges: Mapping[Value, Range],
    *,
    clip: bool,
) -> dict[Value, Quantization]:
    """Find what 8 bits are to stand for.

    Args:
        graph: the network.
        batches: of its inputs.
        groups: the values that are wanted, and of each the value that stands for all that share its range.
        ranges: those that were observed on the same batches, of these values or more.
        clip: whether ranges are clipped.
    """
    shared = {group: Range() for group in groups.values()}
    for v, group in groups.items():
        shared[group].join(ranges[v])
    for inputs in batches if clip else ():
        for v, x in steps(graph, inputs):
            if v in groups:
                shared[groups[v]].count(x)
    found = {group: own.quantization() for group, own in shared.items()}
    return {v: found[group] for v, group in groups.items()}
