"""Values as byte planes: all their highest bytes, then all their second bytes, and so on.

A weight's sign and mantissa are as good as random, its exponent is not. Where each plane is compressed on its own, the
exponents shrink to what they say and the other planes stay as they are: so do ZipNN (Hershcovitch et al. 2024) and
DFloat11 (Zhang et al. 2025). A floating-point number begins with its sign, so the exponent lies across two bytes. Its
bits are rotated left by one first, which moves the sign to the end: the highest byte is then exponent only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fggp.ship.file.dtypes import CHUNK, INTEGER_OF_SIZE


def count(dtype: torch.dtype) -> int:
    """The number of planes of a dtype: its bytes for a floating-point one, 1 for another, which is not split."""
    return dtype.itemsize if dtype.is_floating_point else 1


def split(values: Tensor, plane: int) -> Iterator[Tensor]:
    """Generate one plane of values in parts.

    Args:
        values: [k], contiguous, on the CPU.
        plane: which plane, from 0, the highest bytes.

    Yields:
        uint8 [j]: all parts together have k elements, or all the values' bytes if their dtype is not split.
    """
    if count(values.dtype) == 1:
        yield values.view(torch.uint8)
        return
    size = values.element_size()
    for chunk in torch.split(values.view(INTEGER_OF_SIZE[size]), CHUNK):
        rotated = chunk << 1 | chunk >> (8 * size - 1) & 1
        yield rotated.view(torch.uint8).view(-1, size)[:, size - 1 - plane]


def join(planes: Sequence[Tensor], dtype: torch.dtype, begin: int, end: int) -> Tensor:
    """Some of the values that planes hold, [end − begin]: the inverse of `split`.

    Args:
        planes: uint8, highest bytes first; one of all bytes if the dtype is not split, or if the planes come from a
            file of version 1, which splits none.
        dtype: of the values.
        begin: the first value that is wanted.
        end: the value after the last one. A stretch of `CHUNK` values stays in the cache.
    """
    size = dtype.itemsize
    if len(planes) == 1:
        return planes[0][begin * size : end * size].view(dtype)
    rotated = planes[0][begin:end].to(INTEGER_OF_SIZE[size])
    for plane in planes[1:]:
        rotated <<= 8
        rotated |= plane[begin:end]
    sign = rotated << (8 * size - 1)
    rotated >>= 1
    rotated &= torch.iinfo(rotated.dtype).max
    rotated |= sign
    return rotated.view(dtype)
