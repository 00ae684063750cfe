"""Passes over the weights: those of a Top-K step, and a test for NaN and inf.

A Top-K step calls `sample_scores` to guess a bracket, `count_and_gather` to find the threshold in it, and
`apply_threshold` to select the weights that score less. Here they are torch operations, block by block, for any score,
dtype and device. `native_passes` has them in C++ for built-in scores.

Marks say how far a selection has come. They are uint8, [n] for each layer in its memory order: `SELECTED` (so far),
`EXCLUDED`, or `TIED`: equal to the threshold and not yet decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fggp.scores import Score
from fggp.selection import native_passes
from fggp.selection.bracket import Counts, spread_indices
from fggp.weights.layers import Block, Layer

BLOCK_SIZE = 1 << 18
"""Weights read at a time on a CPU: temporaries of this size stay in cache."""

EXCLUDED, SELECTED, TIED = 0, 1, 2
"""A weight's mark. The first two are the bytes of False and True, so marks without ties are also bool tensors."""


def count_and_gather(
    layers: Sequence[Layer], marks: Sequence[Tensor], score: Score, eligible_mark: int, a: float, b: float
) -> tuple[Counts, Tensor]:
    """Count the scores around a bracket and gather those inside; NaN is not counted.

    Args:
        layers: the weights and gradients.
        marks: uint8 [n] for each layer.
        score: what the weights are ranked by.
        eligible_mark: the mark of the weights that are ranked: TIED, or SELECTED if no weight has the mark TIED.
        a: the bracket's lower end; it may be −inf.
        b: its upper end, not below a; it may be inf.

    Returns:
        The counts, and the scores strictly inside, [inside], in any order.
    """
    if native_passes.supports(layers, score):
        return native_passes.count_and_gather(layers, marks, score, eligible_mark, a, b)
    below_b = at_a = at_b = 0
    found: list[Tensor] = []
    for block, mark in _marked_blocks(layers, marks):
        value, ranked = score.of(block), _have_mark(mark, eligible_mark)
        below = (value < b).logical_and_(ranked)
        below_b += int(below.count_nonzero())
        found.append(value[below.logical_and_(value > a)])
        at_a += int((value == a).logical_and_(ranked).count_nonzero())
        if a != b:
            at_b += int((value == b).logical_and_(ranked).count_nonzero())
    inside = sum(map(len, found))
    # If a = b, then a itself is not below b.
    below_a = below_b - inside - (at_a if a != b else 0)
    device = layers[0].weight.device if layers else None
    empty = torch.empty(0, dtype=score_dtype(layers, score), device=device)
    return Counts(below_a, at_a, inside, at_b), torch.cat([empty, *(f.to(device) for f in found)])


def sample_scores(
    layers: Sequence[Layer], marks: Sequence[Tensor], score: Score, eligible_mark: int, share: float
) -> Tensor:
    """Draw a sample of the scores; NaN may be left out.

    Args:
        layers: the weights and gradients.
        marks: uint8 [n] for each layer.
        score: what the weights are ranked by.
        eligible_mark: the mark of the weights that are ranked.
        share: of each layer, ⌈share·n⌉ weights are read, spread evenly; those with another mark are left out.

    Returns:
        Reals or ints, [k], in any order, on the first layer's device.
    """
    if native_passes.supports(layers, score):
        return native_passes.sample_scores(layers, marks, score, eligible_mark, share)
    values = []
    for layer, m in zip(layers, marks, strict=True):
        index = spread_indices(math.ceil(share * len(layer)), len(layer), m.device)
        values.append(score.of(layer.block_at(index[m[index] == eligible_mark])).to(layers[0].weight.device))
    return torch.cat(values) if values else torch.empty(0)


def apply_threshold(
    layers: Sequence[Layer], marks: Sequence[Tensor], score: Score, eligible_mark: int, threshold: float, equal: int
) -> None:
    """Select the weights that score less than a threshold; exclude those that score more and those that score NaN.

    Args:
        layers: the weights and gradients.
        marks: uint8 [n] for each layer; changed in place.
        score: what the weights are ranked by.
        eligible_mark: the mark of the weights to decide on: TIED, or SELECTED if no weight has the mark TIED.
        threshold: a score.
        equal: the mark for weights whose score equals the threshold.
    """
    if native_passes.supports(layers, score):
        native_passes.apply_threshold(layers, marks, score, eligible_mark, threshold, equal)
        return
    for block, mark in _marked_blocks(layers, marks):
        scores = score.of(block)
        if eligible_mark == SELECTED and equal != TIED:
            mark.view(torch.bool).logical_and_(scores <= threshold if equal == SELECTED else scores < threshold)
            continue
        decided = (scores < threshold).to(torch.uint8)
        if equal != EXCLUDED:
            decided.masked_fill_(scores == threshold, equal)
        torch.where(mark == eligible_mark, decided, mark, out=mark)


def _have_mark(marks: Tensor, mark: int) -> Tensor:
    """Which weights have a certain mark, bool; marks without TIED can be read as bools in place."""
    return marks.view(torch.bool) if mark == SELECTED else marks == mark


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no element of some tensors is infinite or NaN.

    Args:
        tensors: floating-point, of any dtype, on any device.
    """
    known = True if not tensors else native_passes.all_finite(tensors)
    if known is not None:
        return known
    # A norm is one cheap pass and is not finite if an element is not. It may also overflow: only then are the elements
    # looked at. On a GPU all norms together take one synchronization.
    norms = torch.stack([norm.to(tensors[0].device, torch.float32) for norm in torch._foreach_norm(list(tensors), 1)])
    return bool(norms.isfinite().all()) or all(bool(t.isfinite().all()) for t in tensors)


def replace_mark(marks: Tensor, old: int, new: int) -> None:
    """Replace one mark by another in a layer's marks, in place."""
    for block in torch.split(marks, BLOCK_SIZE):
        block.masked_fill_(block == old, new)


def count_mark(marks: Tensor, mark: int) -> int:
    """How many of a layer's weights have a certain mark."""
    return sum(int((block == mark).count_nonzero()) for block in torch.split(marks, BLOCK_SIZE))


def score_dtype(layers: Sequence[Layer], score: Score) -> torch.dtype:
    """The dtype of a score's values on these layers; float32 if there are none."""
    return score.of(layers[0].block(0, 0)).dtype if layers else torch.float32


def _marked_blocks(layers: Sequence[Layer], marks: Sequence[Tensor]) -> Iterator[tuple[Block, Tensor]]:
    """The blocks of all layers in which any weight is marked, with their marks; both are views."""
    for layer, mark in zip(layers, marks, strict=True):
        size = BLOCK_SIZE if mark.device.type == "cpu" else max(1, len(layer))
        for start in range(0, len(layer), size):
            part = mark[start : start + size]
            if part.count_nonzero():
                yield layer.block(start, start + len(part)), part
