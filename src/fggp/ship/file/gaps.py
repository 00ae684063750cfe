"""Positions as gaps, a byte each: where the weights are that pruning left.

A code below 255 skips so many places and stands at the next; 255 skips 255 places and stands nowhere: a gap of 600 is
255, 255, 90. Up to 98 % sparsity hardly a gap needs more than its byte. Codes of bits would save one or two of the 40
bits that a float32 weight takes with its gap, and no longer decode by one cumulative sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

ESCAPE = 255
"""The code that skips as many places and stands at none."""


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
    """The inverse of `encode`: int64 [k].

    Args:
        codes: uint8 [m]; from where they cannot be trusted, `check` them before.
    """
    stands = codes != ESCAPE
    ends = codes.long().add_(stands).cumsum(0)
    # Most tensors need no escape, and selecting all is as slow as selecting some.
    return (ends if stands.all() else ends[stands]).sub_(1)


def check(codes: Tensor, count: int, length: int) -> None:
    """Refuse codes that are not those of ``count`` positions below ``length``; allocates a byte a code.

    Raises:
        ValueError: they are not.
    """
    stand = int((codes != ESCAPE).count_nonzero())
    if stand != count:
        raise ValueError(f"its gaps place {stand} values, but it has {count}")
    end = int(codes.sum(dtype=torch.int64)) + count
    if end > length:
        raise ValueError(f"its gaps run to {end}, beyond its {length} elements")
