"""The steps of a plan: instructions for the kernels, the buffers they read and write, and steps that PyTorch runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fggp.ship.graph.operations import Activation, Op, Pair, Value
from fggp.ship.runtime.kernels import CTensor
from fggp.ship.runtime.layout import ActivationLayout
from fggp.ship.runtime.sparse_weight import SparseWeight


@dataclass(eq=False)
class Buffer:
    """An activation's memory.

    Args:
        layout: its memory layout.
        may_overwrite: a buffer whose memory it may take: each of its pixels is written after the same pixel of that
            buffer is read.
    """

    layout: ActivationLayout
    may_overwrite: Buffer | None = None


@dataclass(frozen=True, eq=False)
class Instruction:
    """One operation of a program.

    Args:
        name: the function's name after ``fggp_add_``.
        reads: the activations it reads.
        writes: the activations it writes.
        arguments: called with a function that gives each buffer's C structure. Returns the operation's arguments and
            the objects to keep alive while they are used.
        op: the graph's operation that it is part of; None for a conversion of layout.
        caller_tensor: the caller's tensor that a load reads or a store writes; None for other operations.
    """

    name: str
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]
    arguments: Callable[[Callable[[Buffer], CTensor]], tuple[tuple[Any, ...], tuple[Any, ...]]]
    op: Op | None = None
    caller_tensor: Value | None = None


@dataclass(frozen=True, eq=False)
class Torch:
    """An operation that PyTorch runs on its own tensors."""

    op: Op


@dataclass(frozen=True, eq=False)
class Convolve:
    """One sparse product, before its tiling is chosen: a convolution, or a linear layer as a 1×1 convolution."""

    op: Op
    weight: SparseWeight
    input: Buffer
    out: Buffer
    residual: Buffer | None
    padding: Pair
    dilation: Pair
    stride: int
    activation: Activation | None

    @property
    def pointwise(self) -> bool:
        """Whether an output pixel depends only on the same pixel of the input."""
        return self.weight.shape[2:] == (1, 1) and self.padding == (0, 0) and self.stride == 1


@dataclass(frozen=True, eq=False)
class Product:
    """Sparse products (convolutions and linear layers) that run together, tile by tile.

    Args:
        chain: the products. Each after the first is pointwise, and reads the output of the one before it.
    """

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
        """Whether each output channel is one pixel of a single image (``lanes`` is 1), too few to fill a vector."""
        layout = self.chain[0].out.layout
        return layout.lanes == 1 and layout.height * layout.width == 1

    @property
    def kernel(self) -> str:
        """The name of the operation that computes it, after ``fggp_add_``."""
        if self.one_pixel:
            return "product"
        return "strided" if self.chain[0].out.layout.lanes == 1 and self.chain[0].stride == 2 else "conv"

    def can_append(self, other: Product) -> bool:
        """Whether the other product, the next step, can run tile by tile together with this one."""
        last, following = self.chain[-1], other.chain[0]
        return (
            last.out.layout.lanes > 1 and len(other.chain) == 1 and following.pointwise and following.input is last.out
        )


Step = Instruction | Product | Torch
