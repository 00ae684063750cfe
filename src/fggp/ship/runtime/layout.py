"""The memory layout of activations in the kernels, and how a caller's tensor maps to it."""

import re
from dataclasses import dataclass
from enum import Enum, auto

import torch

from fggp.ship.graph.operations import Value
from fggp.ship.runtime.kernels import CStrides, CTensor

# The smallest distance in bytes between two pixels of one image that a sparse weight's 32-bit offset cannot express.
OFFSET_LIMIT = 2**31


class TensorKind(Enum):
    """How the kernels read a tensor's dimensions: as images with channels, or as tokens with features."""

    IMAGES = auto()  # [N, C, H, W], or [N, C]: images of one pixel
    TOKENS = auto()  # [..., C]: one image with a pixel for each index of the other dimensions


@dataclass(frozen=True)
class Margin:
    """Padding around an image that kernels read.

    Args:
        rows: rows of zeros below each image, which are also the padding above the next one.
        columns: zeros to the right of each row, which are also the padding to the left of the next one.
        reach: further rows and columns that kernels may read, for results that are not used.
    """

    rows: int = 0
    columns: int = 0
    reach: tuple[int, int] = (0, 0)

    def __or__(self, other: "Margin") -> "Margin":
        reach = (max(self.reach[0], other.reach[0]), max(self.reach[1], other.reach[1]))
        return Margin(max(self.rows, other.rows), max(self.columns, other.columns), reach)


@dataclass(frozen=True)
class ActivationLayout:
    """The memory layout of an activation, as `csrc/fggp.h` describes it.

    All sizes are in cells of ``lanes`` floats. A cell holds the same pixel of ``lanes`` images. (`csrc/fggp.h` says
    "pixel" where this file says "cell".)

    Args:
        lanes: the number of images in a cell: 1 (then a vector covers consecutive pixels of one image's plane), or the
            length of a vector (then a vector is a cell).
        groups: the number of images, or of groups of ``lanes`` images.
        channels: the number of planes in a group.
        height: the number of rows of an image.
        width: the number of cells of a row, without padding.
        row: the distance from one row to the next.
        plane: the distance from one channel to the next.
        lead: the number of zeros before the first plane.
        tail: the number of cells after the last plane that may be read.
    """

    lanes: int
    groups: int
    channels: int
    height: int
    width: int
    row: int
    plane: int
    lead: int
    tail: int

    @property
    def floats(self) -> int:
        """The number of floats it takes, with all cells around it that may be read."""
        return (self.lead + self.groups * self.channels * self.plane + self.tail) * self.lanes

    @property
    def exceeds_offsets(self) -> bool:
        """Whether a group is too large for the 32-bit offsets of sparse weights."""
        return self.channels * self.plane * self.lanes * 4 >= OFFSET_LIMIT

    @property
    def padded(self) -> bool:
        """Whether it has padding, which must stay zero."""
        return self.lead > 0

    def c_tensor(self, address: int) -> CTensor:
        """The C structure of an activation whose memory begins at this address."""
        first = address + self.lead * self.lanes * 4
        shape = (self.lanes, self.groups, self.channels, self.height, self.width)
        return CTensor(first, *shape, self.row, self.plane, self.channels * self.plane)


def image_sizes(shape: tuple[int, ...], kind: TensorKind) -> tuple[int, int, int, int]:
    """The number of images and channels of a tensor, and their height and width."""
    if kind is TensorKind.TOKENS:
        return 1, shape[-1], 1, torch.Size(shape[:-1]).numel()
    images, channels, *plane = shape
    height, width = plane or (1, 1)
    return images, channels, height, width


def pixel_strides(shape: tuple[int, ...], kind: TensorKind) -> CStrides:
    """The strides of a contiguous tensor between images, channels, rows and pixels."""
    _, channels, height, width = image_sizes(shape, kind)
    if kind is TensorKind.TOKENS:
        return CStrides(0, 1, 0, channels)
    return CStrides(channels * height * width, height * width, width, 1)


def choose_layout(
    shape: tuple[int, ...], kind: TensorKind, lanes: int, vector: int, margin: Margin, row: int = 0
) -> ActivationLayout:
    """Choose an activation's layout.

    Args:
        shape: the tensor's shape.
        kind: how its dimensions are read.
        lanes: the number of images in a cell: 1 or ``vector``.
        vector: the number of floats in a vector of this processor.
        margin: the padding that its readers need.
        row: the distance between rows in cells, if another activation determines it; 0: the least for this margin.
    """
    images, channels, height, width = image_sizes(shape, kind)
    row = row or width + margin.columns
    plane = (height + margin.rows) * row + margin.columns
    lead = margin.rows * row + margin.columns
    if lanes > 1:
        # An odd distance: planes an even number of cache lines apart would compete for the same few sets of the caches.
        return ActivationLayout(lanes, -(-images // lanes), channels, height, width, row, plane | 1, lead, 0)
    tail = margin.reach[0] * row + margin.reach[1] + vector
    if height * width > 1:
        plane = (-(-plane // vector) | 1) * vector
        lead = -(-lead // vector) * vector
    return ActivationLayout(1, images, channels, height, width, row, plane, lead, tail)


def shape_for_batch(value: Value, batch: int) -> tuple[int, ...]:
    """The value's shape for a batch size.

    Raises:
        ValueError: a size depends on the batch size, but is no multiple of it.
    """
    return tuple(size if isinstance(size, int) else _multiple(size) * batch for size in value.sizes)


def has_shape_for_any_batch(value: Value) -> bool:
    """Whether `shape_for_batch` knows its shape: each size is constant, or a multiple of the batch size."""
    return all(isinstance(size, int) or _MULTIPLE.fullmatch(size) for size in value.sizes)


_MULTIPLE = re.compile(r"(?:(\d+)\*)?N")


def _multiple(size: str) -> int:
    found = _MULTIPLE.fullmatch(size)
    if found is None:
        raise ValueError(f"the size {size} must be a multiple of the batch size N")
    return int(found[1] or 1)
