"""Masks as data: packed to one bit a weight for saving, and as a digest for comparison between processes."""

from __future__ import annotations

import torch
from torch import Tensor

from fggp.scores import splitmix64
from fggp.selection.passes import BLOCK_SIZE


def pack(mask: Tensor) -> Tensor:
    """Pack a mask to one bit a weight: uint8 [⌈n/8⌉] on the CPU, row-major, lowest bit first."""
    flat = mask.reshape(-1).cpu()
    padded = torch.nn.functional.pad(flat.view(torch.uint8), (0, -len(flat) % 8)).view(-1, 8)
    packed = torch.zeros(len(padded), dtype=torch.uint8)
    for bit in range(8):
        packed |= padded[:, bit] << bit
    return packed


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `pack`: a bool tensor of the given shape on the CPU.

    Raises:
        ValueError: ``packed`` has another dtype or length than the packed mask of this shape.
    """
    length = -(-shape.numel() // 8)
    if packed.dtype != torch.uint8 or packed.shape != (length,):
        raise ValueError(
            f"a packed mask of shape {list(shape)} cannot be {packed.dtype} {list(packed.shape)}: "
            f"it must be torch.uint8 [{length}]"
        )
    bits = torch.stack([(packed >> bit) & 1 for bit in range(8)], dim=1)
    return bits.reshape(-1)[: shape.numel()].bool().view(shape)


def digest(mask: Tensor) -> Tensor:
    """A 64-bit digest of a mask: two different masks have the same with a probability of less than 2⁻⁶⁰.

    Args:
        mask: bool, of any shape; it is read in memory order.

    Returns:
        int64 [], on the mask's device.
    """
    flat = mask.permute(sorted(range(mask.ndim), key=lambda d: -mask.stride()[d])).reshape(-1)
    size = BLOCK_SIZE if mask.device.type == "cpu" else max(1, len(flat))
    total = torch.zeros((), dtype=torch.int64, device=mask.device)
    places = splitmix64(torch.arange(-(-min(size, len(flat)) // 8), device=mask.device), 0)
    for i, block in enumerate(torch.split(flat, size)):
        # A word is eight mask bytes. Each is hashed together with its place in its block, and the block's number; the
        # digest is the sum modulo 2^64.
        # (A sum of words times random factors would not do: of a word that differs in its highest byte, the product
        # keeps only the factor's lowest bits.)
        words = torch.nn.functional.pad(block.view(torch.uint8), (0, -len(block) % 8)).clone().view(torch.int64)
        total += splitmix64(words ^ places[: len(words)], i + 1).sum()
    return total
