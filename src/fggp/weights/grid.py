"""The grid that divides a weight into groups, on all processes and on each process's part."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from fggp.weights.dtensor import Part


@dataclass(frozen=True)
class Grid:
    """A weight cut into cells: groups of its weights.

    Args:
        shape: the weight's full shape.
        steps: the extent of a cell in each dimension, cut to that of the weight; the last cells may be shorter.
        limit: None if a cell is pruned as a whole. Otherwise single weights are, and this many stay at most.
    """

    shape: tuple[int, ...]
    steps: tuple[int, ...]
    limit: int | None = None
    cells: tuple[int, ...] = field(init=False)
    """The number of cells in each dimension."""

    def __post_init__(self) -> None:
        steps = tuple(map(min, self.steps, self.shape))
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "cells", tuple(-(-n // step) for n, step in zip(self.shape, steps, strict=True)))

    @property
    def units(self) -> int:
        """How many units can be pruned: cells, or with a limit single weights."""
        return math.prod(self.shape if self.limit is not None else self.cells)

    @property
    def most(self) -> int:
        """How many units may stay."""
        if self.limit is None:
            return self.units
        [divided] = [d for d, s in enumerate(self.steps) if s > 1] or [0]
        n, step = self.shape[divided], self.steps[divided]
        of_line = n // step * min(step, self.limit) + min(n % step, self.limit)
        return math.prod(self.shape) // n * of_line

    def cuts(self, part: Part) -> bool:
        """Whether a part of the weight ends inside a cell."""
        if 0 in part.shape:
            return False
        ends = zip(part.offset, part.shape, self.shape, self.steps, strict=True)
        return any(start % step or ((start + length) % step and start + length < n) for start, length, n, step in ends)

    def of_part(self, part: Part) -> Part:
        """The cells of a part that ends inside none, as a part of all cells."""
        offset = tuple(start // step for start, step in zip(part.offset, self.steps, strict=True))
        shape = tuple(-(-length // step) for length, step in zip(part.shape, self.steps, strict=True))
        return Part(self.cells, shape, offset)

    def firsts(self, part: Part, tensor: Tensor) -> Tensor:
        """A view of the elements that are the first ones of their cells.

        Args:
            part: the part of the weight.
            tensor: of the part's shape.
        """
        return tensor[
            tuple(slice(-start % step, None, step) for start, step in zip(part.offset, self.steps, strict=True))
        ]
