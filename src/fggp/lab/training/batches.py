"""The batches of an epoch: order, shifts and flips are drawn from (seed, epoch) alone and applied to whole batches."""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fggp.lab.training.data import Augmentation, Split

BYTES_AT_ONCE = 1 << 26
"""Images that a GPU augments at once: with many small batches, launching the kernels takes the longest."""


def epoch_seeds(seed: int, epoch: int, rank: int = 0) -> tuple[int, int]:
    """Mix a run's seed and an epoch into two seeds: for the epoch's batches, and for the network's own draws.

    The first is equal on all ranks, so that they share the batches; the second differs.
    """
    order, *layers = np.random.SeedSequence((seed, epoch)).generate_state(2 + rank)
    return int(order), int(layers[rank])


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """Return the sizes of the batches that `training_batches` makes of this number of images.

    They differ by one image at most: a small last batch would give batch norm noise.
    """
    count = math.ceil(images / batch_size)
    return [images // count + (batch < images % count) for batch in range(count)]


def training_batches(
    split: Split,
    batch_size: int,
    augmentation: Augmentation,
    generator: torch.Generator,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Split]:
    """Yield every image of the split once, shuffled and augmented, as uint8 batches.

    Args:
        split: images and labels, on any device; the batches are made there.
        batch_size: images in the largest batch.
        augmentation: how far to shift, whether to flip.
        generator: the only source of randomness, on the CPU, so that all devices see the same batches. Everything is
            drawn before the first batch.
        rank: the rank whose part of every batch to yield.
        ranks: number of ranks. Their parts, joined in order, are the batch; parts differ by one image at most.
    """
    count, device = len(split), split.labels.device
    order = torch.randperm(count, generator=generator)
    offsets = torch.randint(2 * augmentation.shift + 1, (2, count), generator=generator)
    flips = torch.randint(2, (count,), generator=generator, dtype=torch.bool)
    batches = torch.split(torch.arange(count), batch_sizes(count, batch_size))
    parts = [batch.tensor_split(ranks)[rank] for batch in batches]
    own = torch.cat(parts)
    order, offsets, flips = order[own].to(device), offsets[:, own].to(device), flips[own].to(device)
    sizes = [len(part) for part in parts]
    at_once, start = _batches_at_once(split, math.ceil(batch_size / ranks)), 0
    for first in range(0, len(sizes), at_once):
        group = sizes[first : first + at_once]
        places = slice(start, start := start + sum(group))
        chosen = split[order[places]]
        top, left = offsets[:, places]
        images = shifted(chosen.images, top, left, augmentation.shift)
        if augmentation.flip:
            images = flipped(images, flips[places])
        yield from map(Split, torch.split(images, group), torch.split(chosen.labels, group))


def _batches_at_once(split: Split, batch_size: int) -> int:
    """Return how many batches to make together: one, which stays in a CPU's cache, or enough to keep a GPU busy."""
    if split.images.device.type == "cpu":
        return 1
    return max(1, BYTES_AT_ONCE // (batch_size * split.images[:1].nbytes))


def shifted(images: Tensor, top: Tensor, left: Tensor, pad: int) -> Tensor:
    """Pad every image with `pad` zeros on each side, then crop it to its size at its own (top, left).

    Args:
        images: [N, C, H, W].
        top: first row of each crop in the padded image, [N], in 0…2·pad.
        left: first column, likewise.
        pad: in pixels.
    """
    height, width = images.shape[2:]
    windows = F.pad(images, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def flipped(images: Tensor, which: Tensor) -> Tensor:
    """Mirror the images [N, C, H, W] left to right where the bool tensor `which` [N] is true."""
    return torch.where(which.view(-1, 1, 1, 1), images.flip(3), images)
