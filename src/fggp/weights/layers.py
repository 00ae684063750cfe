"""Prunable weights as a selection reads them: flat, in blocks that fit in cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fggp.weights.averages import Averages
from fggp.weights.dtensor import Part, local, local_gradient
from fggp.weights.prunable import Prunable


@dataclass(frozen=True)
class Layout:
    """Between a tensor's indices and the order in which the elements of this process's part of it lie in memory.

    Selection and masking work in memory order, which makes a flat view of any dense tensor free (channels_last
    included). Positions, which break ties, are always the flat index in the whole tensor, so results do not depend on
    layout or sharding.

    Args:
        part: what this process holds of the tensor.
        order: its dimensions from the slowest to the fastest in memory.
    """

    part: Part
    order: tuple[int, ...]

    @staticmethod
    def of_mask(weight: Tensor) -> Layout:
        """The layout that the mask of a weight has: the weight's own where it is dense."""
        strides = torch.empty_like(local(weight), device="meta").stride()
        return Layout(Part.of(weight), tuple(sorted(range(weight.ndim), key=lambda d: (-strides[d], d))))

    @property
    def shape(self) -> tuple[int, ...]:
        """The part's shape."""
        return self.part.shape

    def flat(self, tensor: Tensor) -> Tensor:
        """A tensor of this shape as [n] in this memory order; a view where the tensor has this layout."""
        return tensor.permute(self.order).reshape(-1)

    def shaped(self, flat: Tensor) -> Tensor:
        """The inverse of `flat`: a view of an [n] tensor in memory order, in the logical shape."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return flat.view([self.shape[d] for d in self.order]).permute(inverse)

    def position(self, index: Tensor) -> Tensor:
        """The flat indices in the whole, row-major, of memory-order indices, both int64 of any shape."""
        whole, shape, offset = self.part.whole, self.part.shape, self.part.offset
        stride = [1] * len(whole)
        for d in range(len(whole) - 2, -1, -1):
            stride[d] = stride[d + 1] * whole[d + 1]
        if self.order == tuple(range(len(whole))) and shape[1:] == whole[1:]:  # rows, one after the other
            return index + offset[0] * stride[0] if any(offset) else index
        position = torch.zeros_like(index)
        for d in reversed(self.order):
            position += (index % shape[d] + offset[d]) * stride[d]
            index = index // shape[d]
        return position


@dataclass(frozen=True)
class Layer:
    """One prunable weight and its gradient, flattened in memory order.

    Args:
        name: the weight's name in the model.
        layout: from memory order to logical positions.
        weight: θ, [n].
        grad: g, [n], or None where the loss did not reach the weight (it counts as zero: that is its derivative).
        dtype: what scores are computed in; common to all layers that are ranked together, so that values compare.
        grad_scale: what the stored gradient is to be divided by (an optimizer that unscales by itself, under AMP).
        owned: whether this process counts these weights; of those that hold the same part of a weight one does.
        averages: what the method keeps of earlier gradients (`fggp.Average`), by name, [n] each.
    """

    name: str
    layout: Layout
    weight: Tensor
    grad: Tensor | None
    dtype: torch.dtype = torch.float32
    grad_scale: float = 1.0
    owned: bool = True
    averages: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.weight.numel()

    @property
    def whole(self) -> int:
        """How many weights the layer has on all processes."""
        return torch.Size(self.layout.part.whole).numel()

    def block(self, start: int, stop: int) -> Block:
        """The weights start … stop − 1 in memory order."""
        return Block(self, slice(start, stop))

    def at(self, index: Tensor) -> Block:
        """The weights at some memory-order indices, int64 [k]."""
        return Block(self, index)


@dataclass(frozen=True)
class Block:
    """Some of a layer's weights: what a score is computed from. All tensors are [k]."""

    layer: Layer
    where: slice | Tensor

    @cached_property
    def weight(self) -> Tensor:
        """θ, in the dtype scores are computed in."""
        return self.layer.weight[self.where].to(self.layer.dtype)

    @cached_property
    def grad(self) -> Tensor:
        """g, unscaled, in the dtype scores are computed in."""
        if self.layer.grad is None:
            return torch.zeros_like(self.weight)
        grad = self.layer.grad[self.where].to(self.layer.dtype)
        return grad if self.layer.grad_scale == 1 else grad / self.layer.grad_scale

    def average(self, name: str) -> Tensor:
        """A running average of the gradients, in the dtype scores are computed in.

        Raises:
            ValueError: the method does not keep it.
        """
        if name not in self.layer.averages:
            raise ValueError(f"a score reads the average {name!r}: the method must return it from averages()")
        return self.layer.averages[name][self.where].to(self.layer.dtype)

    @cached_property
    def position(self) -> Tensor:
        """The weights' logical flat indices, int64."""
        index = self.where
        if isinstance(index, slice):
            index = torch.arange(index.start, index.stop, device=self.layer.weight.device)
        return self.layer.layout.position(index)


def flatten(
    weights: Sequence[Prunable],
    grads: bool = False,
    grad_scale: float = 1.0,
    owned: Sequence[bool] | None = None,
    averages: Averages | None = None,
) -> list[Layer]:
    """The weights, and on request their gradients, as a selection reads them: views where they are dense.

    Args:
        weights: what is to be ranked together.
        grads: whether to read the gradients too.
        grad_scale: what stored gradients are to be divided by.
        owned: which of them this process counts; all of them by default.
        averages: what is kept of earlier gradients, if anything is.
    """
    # Half precision is ranked in float32 and everything in float64 where one weight is: no value is rounded.
    double = any(w.parameter.dtype == torch.float64 for w in weights)
    layers = []
    for w, mine in zip(weights, owned or [True] * len(weights), strict=True):
        layout = Layout.of_mask(w.parameter)
        grad = local_gradient(w.parameter) if grads else None
        if grad is not None:
            grad = layout.flat(grad if grad.layout == torch.strided else grad.to_dense())
        dtype = torch.float64 if double else torch.float32
        kept = {} if averages is None else {name: layout.flat(a) for name, a in averages.of(w).items()}
        layers.append(Layer(w.name, layout, layout.flat(local(w.parameter)), grad, dtype, grad_scale, mine, kept))
    return layers
