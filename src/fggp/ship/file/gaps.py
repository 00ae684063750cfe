"""Positions of non-zero weights, coded as gaps of one byte each.

A code below 255 skips that number of zeros and places a value at the next position. The code 255 skips 255 zeros and
places nothing: a gap of 600 is 255, 255, 90. Up to 98 % sparsity almost every gap takes one byte. Codes of a variable
number of bits would save one or two of the 40 bits that a float32 weight takes with its gap, but decoding
would be slower: today it is a single cumulative sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

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


def decode(codes: Tensor) -> Tensor:
    """The positions that codes stand for, int64 [k]: the inverse of `encode`.

    Args:
        codes: uint8 [m]. `check` codes from a file that cannot be trusted first.
    """
    places_value = codes != ESCAPE
    ends = codes.long().add_(places_value).cumsum(0)
    # Most tensors need no escape, and selecting all elements is as slow as selecting some.
    return (ends if places_value.all() else ends[places_value]).sub_(1)


def check(codes: Tensor, count: int, length: int) -> None:
    """Refuse codes that do not stand for ``count`` positions below ``length``. Allocates one byte a code.

    Args:
        codes: uint8 [m].
        count: the number of values.
        length: the number of elements of the tensor.

    Raises:
        ValueError: the count or the last position is wrong.
    """
    placed = int((codes != ESCAPE).count_nonzero())
    if placed != count:
        raise ValueError(f"its gaps place {placed} values, but it has {count}")
    end = int(codes.sum(dtype=torch.int64)) + count
    if end > length:
        raise ValueError(f"its gaps run to {end}, beyond its {length} elements")
