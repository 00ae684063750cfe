"""Tensors whose images are last in memory: the image is the dimension that varies fastest, not the slowest.

A batch of images [n, c, h, w] then has the strides (1, h·w·n, w·n, n). A batch of vectors [n, …, c] is a matrix of c
rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rows_of_channels(x: Tensor, vectors: bool = False) -> Tensor:
    """View a batch with its images last: of images [n, c, h, w] as [c, h, w, n], of vectors [n, …, c] as [c, n, …]."""
    return x.movedim(-1, 0) if vectors else x.permute(1, 2, 3, 0)


def is_images_last(x: Tensor) -> bool:
    """Whether the images of a batch [n, c, h, w] are last in memory, and it could be told from other layouts."""
    return x.dim() == 4 and x.shape[0] > 1 and not x.is_contiguous() and rows_of_channels(x).is_contiguous()


def images_last(x: Tensor, vectors: bool = False) -> Tensor:
    """Return a batch with its images last in memory; the same tensor if they are."""
    rows = rows_of_channels(x, vectors)
    if rows.is_contiguous():
        return x
    rows = rows.contiguous()
    return rows.movedim(0, -1) if vectors else rows.permute(3, 0, 1, 2)


def empty_images_last(shape: Sequence[int], like: Tensor, vectors: bool = False) -> Tensor:
    """Return a new batch with its images last in memory.

    It is no view, so that in-place operations after a product, such as ReLU's, cost nothing.
    """
    if vectors:
        *lead, _ = shape
        strides: tuple[int, ...] = (*torch.empty(lead, device="meta").stride(), torch.Size(lead).numel())
    else:
        n, _, h, w = shape
        strides = (1, h * w * n, w * n, n)
    return torch.empty_strided(tuple(shape), strides, dtype=like.dtype, device=like.device)
