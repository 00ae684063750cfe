"""Integer keys in the order of the scores: processes search for a score by counting the digits of its key."""

from __future__ import annotations

import torch
from torch import Tensor

INT_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The signed integer of a number's size in bytes, as which its bits are viewed."""

_SIGN_BIT = {32: -(1 << 31), 64: -(1 << 63)}
"""The highest bit of a signed integer, by its width."""


def ordered_keys(values: Tensor) -> Tensor:
    """The bits of unsigned integers that are in the order of the values; −0 and +0 have the same key.

    Args:
        values: float32, float64 or int64, without NaN.

    Returns:
        int64 of the same shape. The sign bit is the highest bit of a 64-bit key.
    """
    if values.dtype == torch.int64:
        return values ^ _SIGN_BIT[64]
    positive_zero = values + 0.0
    if values.dtype == torch.float64:
        return _swap_negative(positive_zero.view(torch.int64)) ^ _SIGN_BIT[64]
    return _swap_negative(positive_zero.view(torch.int32)).long() - _SIGN_BIT[32]


def value_of_key(key: int, dtype: torch.dtype) -> float:
    """The inverse of `ordered_keys` for one key, given as an unsigned integer (or as its int64)."""
    width = 32 if dtype == torch.float32 else 64
    signed = (key & ((1 << width) - 1)) + _SIGN_BIT[width]
    if dtype == torch.int64:
        return signed
    bits = torch.tensor([signed], dtype=torch.int32 if width == 32 else torch.int64)
    return float(_swap_negative(bits).view(dtype))


def _swap_negative(bits: Tensor) -> Tensor:
    """Convert between a float's bits and a signed integer of the same rank: the bits of negative floats descend."""
    width = bits.element_size() * 8
    return bits ^ (bits >> (width - 1)) & ~_SIGN_BIT[width]
