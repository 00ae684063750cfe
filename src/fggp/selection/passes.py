"""The two passes over the weights that a Top-K step makes: `survey` counts around the cut, `cut` marks what is below.

Here as torch operations, block by block, for any score, dtype and device; `kernel_passes` has the same natively for
the scores of the built-in methods. Marks are uint8, for each layer [n] in its memory order:
0 is out, 1 is in, and 2 ties for the last place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fggp.scores import Score
from fggp.selection import native_passes
from fggp.weights.layers import Block, Layer

BLOCK_SIZE = 1 << 18
"""Weights read at a time on a CPU: temporaries of this size stay in cache."""

MARK_OUT, MARK_IN, MARK_TIED = 0, 1, 2


class Counts(NamedTuple):
    """How many weights score less than a, just a, strictly between a and b, and just b; for a = b, none the last."""

    below_a: int
    at_a: int
    inside: int
    at_b: int


def survey(
    layers: Sequence[Layer], marks: Sequence[Tensor], score: Score, among: int, a: float, b: float
) -> tuple[Counts, Tensor]:
    """Count and gather around a bracket. NaN is nowhere.

    Args:
        layers: the weights and gradients.
        marks: of each layer.
        score: what the weights are ranked by.
        among: the mark of those that take part: MARK_IN, all others being MARK_OUT, or MARK_TIED.
        a: the bracket's lower end; it may be −inf.
        b: its upper end, not below a; it may be inf.

    Returns:
        The counts, and the scores strictly inside, [inside], in any order.
    """
    if native_passes.supports(layers, score):
        counts, scores = native_passes.survey(layers, marks, score, among, a, b)
        return Counts(*counts), scores
    below_b = at_a = at_b = 0
    found: list[Tensor] = []
    for block, mark in _blocks(layers, marks):
        value, taken = score.of(block), _those(mark, among)
        below = (value < b).logical_and_(taken)
        below_b += int(below.count_nonzero())
        found.append(value[below.logical_and_(value > a)])
        at_a += int((value == a).logical_and_(taken).count_nonzero())
        if a != b:
            at_b += int((value == b).logical_and_(taken).count_nonzero())
    inside = sum(map(len, found))
    # Of an empty bracket, a itself is not below b.
    below_a = below_b - inside - (at_a if a != b else 0)
    device = layers[0].weight.device if layers else None
    empty = torch.empty(0, dtype=score_dtype(layers, score), device=device)
    return Counts(below_a, at_a, inside, at_b), torch.cat([empty, *(f.to(device) for f in found)])


def draw(layers: Sequence[Layer], marks: Sequence[Tensor], score: Score, among: int, share: float) -> Tensor:
    """The scores of some of the weights, NaN possibly left out.

    Args:
        layers: the weights and gradients.
        marks: of each layer.
        score: what the weights are ranked by.
        among: the mark of those that take part.
        share: ⌈share·n⌉ weights of each layer are looked at, spread evenly.

    Returns:
        Reals or ints, [k], in any order, on the first layer's device.
    """
    if native_passes.supports(layers, score):
        return native_passes.draw(layers, marks, score, among, share)
    values = []
    for layer, m in zip(layers, marks, strict=True):
        n = len(layer)
        # Multiples of the golden ratio, modulo 1, spread evenly and follow no stride of the tensor.
        points = torch.arange(math.ceil(share * n), dtype=torch.float64, device=m.device)
        index = (points * 0.6180339887498949 % 1 * n).long()
        values.append(score.of(layer.at(index[m[index] == among])).to(layers[0].weight.device))
    return torch.cat(values) if values else torch.empty(0)


def cut(layers: Sequence[Layer], marks: Sequence[Tensor], score: Score, among: int, value: float, equal: int) -> None:
    """Decide on some weights: those that score less than ``value`` are in; NaN, and what scores more, is out.

    Args:
        layers: the weights and gradients.
        marks: of each layer; changed in place.
        score: what the weights are ranked by.
        among: the mark of those to decide on: MARK_IN, all others being MARK_OUT, or MARK_TIED.
        value: the score at the cut.
        equal: the mark for those that score just that.
    """
    if native_passes.supports(layers, score):
        native_passes.cut(layers, marks, score, among, value, equal)
        return
    for block, mark in _blocks(layers, marks):
        scores = score.of(block)
        if among == MARK_IN and equal != MARK_TIED:
            mark.view(torch.bool).logical_and_(scores <= value if equal == MARK_IN else scores < value)
            continue
        decided = (scores < value).to(torch.uint8)
        if equal != MARK_OUT:
            decided.masked_fill_(scores == value, equal)
        torch.where(mark == among, decided, mark, out=mark)


def _those(marks: Tensor, among: int) -> Tensor:
    """Which weights have a certain mark; before anything ties, marks are bools."""
    return marks.view(torch.bool) if among == MARK_IN else marks == among


def finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no number of some tensors is infinite or NaN.

    Args:
        tensors: floating-point, of any dtype, on any device.
    """
    known = True if not tensors else native_passes.finite(tensors)
    if known is not None:
        return known
    # A norm is one cheap pass and catches every inf and NaN; only where one overflows is looked into. On a GPU the host
    # waits once for all of them.
    norms = torch.stack([norm.to(tensors[0].device, torch.float32) for norm in torch._foreach_norm(list(tensors), 1)])
    return bool(norms.isfinite().all()) or all(bool(t.isfinite().all()) for t in tensors)


def replace_marks(marks: Tensor, old: int, new: int) -> None:
    """Give another mark to all weights of a layer that have a certain one."""
    for block in torch.split(marks, BLOCK_SIZE):
        block.masked_fill_(block == old, new)


def count_marks(marks: Tensor, mark: int) -> int:
    """How many of a layer's weights have a certain mark."""
    return sum(int((block == mark).count_nonzero()) for block in torch.split(marks, BLOCK_SIZE))


def score_dtype(layers: Sequence[Layer], score: Score) -> torch.dtype:
    """What a score's values are."""
    return score.of(layers[0].block(0, 0)).dtype if layers else torch.float32


def _blocks(layers: Sequence[Layer], marks: Sequence[Tensor]) -> Iterator[tuple[Block, Tensor]]:
    """All layers in blocks, as views, with their marks; blocks without any are skipped."""
    for layer, mark in zip(layers, marks, strict=True):
        size = BLOCK_SIZE if mark.device.type == "cpu" else max(1, len(layer))
        for start in range(0, len(layer), size):
            part = mark[start : start + size]
            if part.count_nonzero():
                yield layer.block(start, start + len(part)), part
