"""The steps of a plan: instructions for the kernels, what they read and write, and what PyTorch does in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fggp.ship.graph.operations import Call, Op, Pair, Value
from fggp.ship.runtime.kernels import CTensor
from fggp.ship.runtime.layout import Layout
from fggp.ship.runtime.sparse_weight import SparseWeight


@dataclass(eq=False)
class Buffer:
    """An activation's memory.

    Args:
        layout: where its pixels lie.
        over: a buffer whose memory it may take, because it is written where that one was just read.
    """

    layout: Layout
    over: Buffer | None = None


@dataclass(frozen=True, eq=False)
class Instruction:
    """One operation of a program.

    Args:
        name: after ``fggp_add_``.
        reads: the activations it reads.
        writes: those it writes.
        arguments: given the C structure of each buffer, the operation's arguments and what owns their memory.
        op: what it is part of; None for conversions.
        slot: a caller's tensor that it reads or writes.
    """

    name: str
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]
    arguments: Callable[[Callable[[Buffer], CTensor]], tuple[tuple[Any, ...], tuple[Any, ...]]]
    op: Op | None = None
    slot: Value | None = None


@dataclass(frozen=True, eq=False)
class Elementwise:
    """A function of one number that PyTorch applies to an activation in the kernels' layout."""

    op: Call
    reads: tuple[Buffer]
    writes: tuple[Buffer]


@dataclass(frozen=True, eq=False)
class Torch:
    """An operation that PyTorch runs on its own tensors."""

    op: Op


@dataclass(frozen=True, eq=False)
class Convolve:
    """One sparse product, before its tiles are chosen: a convolution, or a linear layer as one of a single position."""

    op: Op
    weight: SparseWeight
    input: Buffer
    out: Buffer
    residual: Buffer | None
    padding: Pair
    dilation: Pair
    stride: int
    relu: bool

    @property
    def pointwise(self) -> bool:
        """Whether an output pixel depends on the input's same pixel only."""
        return self.weight.shape[2:] == (1, 1) and self.padding == (0, 0) and self.stride == 1


@dataclass(frozen=True, eq=False)
class Product:
    """Sparse products, each but the first pointwise on what the one before it writes, done tile by tile together."""

    chain: tuple[Convolve, ...]

    @property
    def reads(self) -> tuple[Buffer, ...]:
        """Inputs and residuals."""
        return tuple(b for c in self.chain for b in (c.input, c.residual) if b is not None)

    @property
    def writes(self) -> tuple[Buffer, ...]:
        """Outputs."""
        return tuple(c.out for c in self.chain)

    @property
    def one_pixel(self) -> bool:
        """Whether single images come out as one pixel a channel, which no vector could run along."""
        layout = self.chain[0].out.layout
        return layout.lanes == 1 and layout.height * layout.width == 1

    def takes(self, other: Product) -> bool:
        """Whether the other one can be done tile by tile together with this one, right after it."""
        last, then = self.chain[-1], other.chain[0]
        return last.out.layout.lanes > 1 and len(other.chain) == 1 and then.pointwise and then.input is last.out


Step = Instruction | Product | Elementwise | Torch
