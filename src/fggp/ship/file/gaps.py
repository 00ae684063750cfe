"""Positions of non-zero weights, coded as gaps of one byte each.

A code below 255 skips that number of zeros and places a value at the next position. The code 255 skips 255 zeros and
places nothing: a gap of 600 is 255, 255, 90. Up to 98 % sparsity almost every gap takes one byte. Where zeros are
spread at random, gaps are distributed geometrically. The Huffman codes of a zstd frame then bring them within about
2 % of the positions' entropy. Decoding is a cumulative sum.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fggp.ship.file.dtypes import CHUNK

ESCAPE = 255
"""The code that skips 255 zeros and places no value."""


def encode(positions: Tensor) -> Tensor:
    """Code positions as gaps.

    Args:
        positions: int64 [k] on the CPU, ascending, from 0.

    Returns:
        uint8 [m], m ≥ k: the codes.
    """
    gaps = torch.diff(positions, prepend=torch.full((1,), -1, device="cpu")) - 1
    escapes = gaps.div(ESCAPE, rounding_mode="floor")
    ends = (escapes + 1).cumsum(0)
    codes = torch.full((int(ends[-1]) if len(ends) else 0,), ESCAPE, dtype=torch.uint8, device="cpu")
    codes[ends - 1] = (gaps - ESCAPE * escapes).to(torch.uint8)
    return codes


def decode(codes: Tensor) -> Iterator[Tensor]:
    """Generate the positions that codes stand for, in parts: the inverse of `encode`.

    Args:
        codes: uint8 [m] on the CPU. `check` codes from a file that cannot be trusted first.

    Yields:
        int64 [j], at most `CHUNK` each.
    """
    start = -1
    for chunk in torch.split(codes, CHUNK):
        if _has_escapes(chunk):
            places_value = chunk != ESCAPE
            ends = chunk.long().add_(places_value).cumsum_(0).add_(start)
            positions = ends[places_value]
        else:
            positions = ends = chunk.long().add_(1).cumsum_(0).add_(start)
        start = int(ends[-1]) if len(ends) else start
        yield positions


def _has_escapes(codes: Tensor) -> bool:
    """Whether one of the codes places no value. Most tensors have none, and looking is the fastest of all passes."""
    return len(codes) > 0 and int(codes.max()) == ESCAPE


def check(codes: Tensor, count: int, length: int) -> None:
    """Refuse codes that do not stand for ``count`` positions below ``length``. Allocates one byte a code.

    Args:
        codes: uint8 [m].
        count: the number of values.
        length: the number of elements of the tensor.

    Raises:
        ValueError: the count or the last position is wrong.
    """
    placed = int((codes != ESCAPE).count_nonzero()) if _has_escapes(codes) else len(codes)
    if placed != count:
        raise ValueError(f"its gaps place {placed} values, but it has {count}")
    end = int(codes.sum(dtype=torch.int64)) + count
    if end > length:
        raise ValueError(f"its gaps run to {end}, beyond its {length} elements")
