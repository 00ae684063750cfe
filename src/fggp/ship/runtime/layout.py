"""Where the pixels of an activation lie while it is in the kernels' hands, and how a caller's tensor maps to them."""

import re
from dataclasses import dataclass
from enum import Enum, auto

import torch

from fggp.ship.graph.operations import Value
from fggp.ship.runtime.kernels import CStrides, CTensor

# Bytes from one of an image's pixels to another that a sparse weight's offset can tell.
FARTHEST = 2**31


class Kind(Enum):
    """How a tensor's dimensions become channels and pixels."""

    IMAGES = auto()  # [N, C, H, W], or [N, C]: images of one pixel
    TOKENS = auto()  # [..., C]: one image, whose pixels are all that the other dimensions hold


@dataclass(frozen=True)
class Margin:
    """Pixels around an image that kernels read beyond it.

    Args:
        rows: zeros below each image, which are also those above the next one.
        columns: zeros to the right of each row, which are also those to the left of the next one.
        reach: rows and columns that may be read beyond those, for results that nobody uses.
    """

    rows: int = 0
    columns: int = 0
    reach: tuple[int, int] = (0, 0)

    def __or__(self, other: "Margin") -> "Margin":
        reach = (max(self.reach[0], other.reach[0]), max(self.reach[1], other.reach[1]))
        return Margin(max(self.rows, other.rows), max(self.columns, other.columns), reach)


@dataclass(frozen=True)
class Layout:
    """An activation in the kernels' hands; `csrc/fggp.h` has the picture. All sizes in pixels of ``lanes`` floats.

    Args:
        lanes: 1 (a vector runs along the plane), or a whole vector (it holds one pixel of as many images).
        groups: images, or vectors full of images.
        channels: planes in a group.
        height: rows of an image.
        width: pixels of a row.
        row: from one row to the next.
        plane: from one channel to the next.
        lead: zeros before the first plane.
        tail: pixels after the last plane that may be read.
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
        """Floats it takes, with all that may be read around it."""
        return (self.lead + self.groups * self.channels * self.plane + self.tail) * self.lanes

    @property
    def far(self) -> bool:
        """Whether a group is too large for the offsets of sparse weights."""
        return self.channels * self.plane * self.lanes * 4 >= FARTHEST

    @property
    def padded(self) -> bool:
        """Whether there are zeros in it that must stay zero."""
        return self.lead > 0

    def at(self, address: int) -> CTensor:
        """The C structure for an activation whose memory begins at the address."""
        first = address + self.lead * self.lanes * 4
        shape = (self.lanes, self.groups, self.channels, self.height, self.width)
        return CTensor(first, *shape, self.row, self.plane, self.channels * self.plane)


def sizes(shape: tuple[int, ...], kind: Kind) -> tuple[int, int, int, int]:
    """A tensor's images, channels, height and width."""
    if kind is Kind.TOKENS:
        return 1, shape[-1], 1, torch.Size(shape[:-1]).numel()
    images, channels, *plane = shape
    height, width = plane or (1, 1)
    return images, channels, height, width


def strides(shape: tuple[int, ...], kind: Kind) -> CStrides:
    """Where the pixels lie in a contiguous tensor."""
    _, channels, height, width = sizes(shape, kind)
    if kind is Kind.TOKENS:
        return CStrides(0, 1, 0, channels)
    return CStrides(channels * height * width, height * width, width, 1)


def lay_out(shape: tuple[int, ...], kind: Kind, lanes: int, vector: int, margin: Margin, row: int = 0) -> Layout:
    """Choose an activation's layout.

    Args:
        shape: of the tensor.
        kind: how its dimensions are to be read.
        lanes: images in a pixel: 1 or ``vector``.
        vector: floats in a vector of this processor.
        margin: what its readers need.
        row: pixels from one row to the next, where something else decides that; 0: as few as the margin allows.
    """
    images, channels, height, width = sizes(shape, kind)
    row = row or width + margin.columns
    plane = (height + margin.rows) * row + margin.columns
    lead = margin.rows * row + margin.columns
    if lanes > 1:
        # Planes an even number of lines apart would compete for the same few places of the caches.
        return Layout(lanes, -(-images // lanes), channels, height, width, row, plane | 1, lead, 0)
    tail = margin.reach[0] * row + margin.reach[1] + vector
    if height * width > 1:
        plane = (-(-plane // vector) | 1) * vector
        lead = -(-lead // vector) * vector
    return Layout(1, images, channels, height, width, row, plane, lead, tail)


def like(value: Value, batch: int) -> tuple[int, ...]:
    """The value's shape for a batch.

    Raises:
        ValueError: a size depends on the batch in another way than as a multiple of it.
    """
    return tuple(size if isinstance(size, int) else _multiple(size) * batch for size in value.sizes)


def scales(value: Value) -> bool:
    """Whether its sizes are fixed or multiples of the batch size."""
    return all(isinstance(size, int) or _MULTIPLE.fullmatch(size) for size in value.sizes)


_MULTIPLE = re.compile(r"(?:(\d+)\*)?N")


def _multiple(size: str) -> int:
    found = _MULTIPLE.fullmatch(size)
    if found is None:
        raise ValueError(f"a size of {size}, which is no multiple of the batch size N")
    return int(found[1] or 1)
