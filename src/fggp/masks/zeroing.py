"""Zeroing: sets pruned weights, and their optimizer state, to exactly +0 in one pass; quantised state to a code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fggp.selection import native_passes
from fggp.selection.keys import INT_OF_SIZE

CHUNK_SIZE = 1 << 24
"""Elements zeroed at a time by torch operations: on a CPU they widen the masks to 4 or 8 bytes an element."""


def zero_pruned(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Set tensors to exactly +0 where their mask is False, in place, in one pass over them.

    Args:
        tensors: tensors of any size, dtype and layout, whose zero is all bits 0: floats, and ints.
        masks: for each tensor a bool tensor of its shape on its device.
    """
    remaining = native_passes.zero(tensors, masks)
    # Multiply the bits by 0 or 1. A float product would give -0 and NaN (from inf and NaN); this gives +0. And an int
    # times a bool is the cheapest masking in torch.
    bits = [c.view(INT_OF_SIZE[c.element_size()]) for i in remaining for c in _chunks(tensors[i].detach())]
    if bits:
        torch._foreach_mul_(bits, [c for i in remaining for c in _chunks(masks[i])])


def write_zero_code(codes: Tensor, mask: Tensor, code_map: Tensor) -> None:
    """Write the code of zero to pruned elements, in place.

    Args:
        codes: integers of any shape and layout.
        mask: bool of the same shape.
        code_map: the number of each code, [codes]. The code of zero is that whose number is the nearest to it.
    """
    # All on the device, without a synchronization for the code.
    torch.where(mask, codes, code_map.abs().argmin().to(codes.dtype), out=codes)


def write_zero_nibble(codes: Tensor, mask: Tensor, code_map: Tensor) -> None:
    """Write the code of zero to pruned elements of packed 4-bit codes, in place.

    Args:
        codes: uint8 [n/2], two codes a byte, the first in the higher bits, in the row-major order of the elements.
        mask: bool with n elements.
        code_map: the number of each code, [16]. The code of zero is that whose number is the nearest to it.
    """
    pairs = mask.reshape(-1, 2).to(torch.uint8)
    kept = (pairs[:, 0] * 0xF0).bitwise_or_(pairs[:, 1] * 0x0F)
    zeros = code_map.abs().argmin().to(torch.uint8) * 0x11
    codes.bitwise_and_(kept).bitwise_or_(kept.bitwise_not_().bitwise_and_(zeros))


def _chunks(tensor: Tensor) -> Sequence[Tensor]:
    """A tensor on the CPU as views of not much more than `CHUNK_SIZE` elements; on a GPU it stays whole."""
    if tensor.numel() <= CHUNK_SIZE or tensor.device.type != "cpu":
        return [tensor]
    d = max(range(tensor.ndim), key=lambda d: tensor.shape[d])
    return torch.split(tensor, max(1, tensor.shape[d] * CHUNK_SIZE // tensor.numel()), dim=d)
