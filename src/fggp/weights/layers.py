"""Prunable weights as a selection reads them: flat, in blocks that fit in cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fggp.weights.averages import Averages
from fggp.weights.dtensor import Part, local
from fggp.weights.gradients import Gradients
from fggp.weights.grid import Grid
from fggp.weights.prunable import Prunable


@dataclass(frozen=True)
class Layout:
    """Converts between memory order of this process's part of a tensor and indices of the full tensor.

    Selection and masking work in memory order: it makes a flat view of any dense tensor free, channels_last
    included. Positions, which break ties, are flat indices in the full tensor, so results do not depend on layout
    or sharding.

    Args:
        part: the part of the tensor that this process holds.
        order: its dimensions from the slowest to the fastest in memory.
    """

    part: Part
    order: tuple[int, ...]

    @staticmethod
    def of_mask(weight: Tensor) -> Layout:
        """The layout of a weight's mask: the weight's own if that is dense."""
        like = torch.empty_like(local(weight), device="meta")
        strides = like.stride()
        # Of dimensions with the same stride, those of size 1 last: so a mask has PyTorch's strides in them too.
        order = sorted(range(weight.ndim), key=lambda d: (-strides[d], like.shape[d] == 1, d))
        return Layout(Part.of(weight), tuple(order))

    @property
    def shape(self) -> tuple[int, ...]:
        """The part's shape."""
        return self.part.shape

    def flat(self, tensor: Tensor) -> Tensor:
        """A tensor of this shape as [n] in this memory order; a view if the tensor has this layout."""
        return tensor.permute(self.order).reshape(-1)

    def shaped(self, flat: Tensor) -> Tensor:
        """The inverse of `flat`: an [n] tensor in memory order, viewed in the part's shape."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return flat.view([self.shape[d] for d in self.order]).permute(inverse)

    def position(self, index: Tensor) -> Tensor:
        """Convert memory-order indices to row-major flat indices in the full tensor, both int64 of any shape."""
        full_shape, shape, offset = self.part.full_shape, self.part.shape, self.part.offset
        stride = [1] * len(full_shape)
        for d in range(len(full_shape) - 2, -1, -1):
            stride[d] = stride[d + 1] * full_shape[d + 1]
        if self.order == tuple(range(len(full_shape))) and shape[1:] == full_shape[1:]:  # consecutive full rows
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
        layout: converts memory order to positions in the full weight.
        weight: θ, [n].
        grad: g, [n]; None counts as zero.
        dtype: the dtype of scores; the same for all layers that are ranked together, so that their scores compare.
        grad_scale: the factor to divide the stored gradient by (under AMP, with an optimizer that unscales by itself).
        owned: whether this process counts these weights; of the processes that hold the same part, one does.
        averages: the method's running averages of gradients (`fggp.Average`), by name, [n] each.
        grid: the groups in which the weights are pruned, or whose patterns they keep to; None: there are none.
    """

    name: str
    layout: Layout
    weight: Tensor
    grad: Tensor | None
    dtype: torch.dtype = torch.float32
    grad_scale: float = 1.0
    owned: bool = True
    averages: Mapping[str, Tensor] = field(default_factory=dict)
    grid: Grid | None = None

    def __len__(self) -> int:
        return self.weight.numel()

    @property
    def total_size(self) -> int:
        """The number of the layer's weights on all processes."""
        return torch.Size(self.layout.part.full_shape).numel()

    def block(self, start: int, stop: int) -> Block:
        """The weights start … stop − 1 in memory order."""
        return Block(self, slice(start, stop))

    def block_at(self, index: Tensor) -> Block:
        """The weights at some memory-order indices, int64 [k]."""
        return Block(self, index)


@dataclass(frozen=True)
class Block:
    """Some of a layer's weights, from which a score is computed. All tensors are [k].

    Args:
        layer: the layer.
        where: which of its weights, in memory order: a slice, or indices, int64 [k].
    """

    layer: Layer
    where: slice | Tensor

    @cached_property
    def weight(self) -> Tensor:
        """θ, in the dtype of scores."""
        return self.layer.weight[self.where].to(self.layer.dtype)

    @cached_property
    def grad(self) -> Tensor:
        """g, unscaled, in the dtype of scores."""
        if self.layer.grad is None:
            return torch.zeros_like(self.weight)
        grad = self.layer.grad[self.where].to(self.layer.dtype)
        return grad if self.layer.grad_scale == 1 else grad / self.layer.grad_scale

    def average(self, name: str) -> Tensor:
        """A running average of the gradients, in the dtype of scores.

        Raises:
            ValueError: the method does not keep it.
        """
        if name not in self.layer.averages:
            raise ValueError(f"a score reads the average {name!r}: the method must return it from averages()")
        return self.layer.averages[name][self.where].to(self.layer.dtype)

    @cached_property
    def position(self) -> Tensor:
        """The weights' flat indices in the full weight, int64."""
        index = self.where
        if isinstance(index, slice):
            index = torch.arange(index.start, index.stop, device=self.layer.weight.device)
        return self.layer.layout.position(index)


def flatten(
    weights: Sequence[Prunable],
    gradients: Gradients | None = None,
    owned: Sequence[bool] | None = None,
    averages: Averages | None = None,
) -> list[Layer]:
    """Flatten weights and gradients for a selection: views of those that are dense.

    Args:
        weights: the weights to be ranked together.
        gradients: their gradients; None if no score reads them.
        owned: for each weight whether this process counts it; by default it counts all.
        averages: the method's running averages of gradients.
    """
    # Scores round no value: half precision is ranked in float32, and everything in float64 if one weight is float64.
    double = any(w.parameter.dtype == torch.float64 for w in weights)
    gradients = gradients or Gradients([None] * len(weights), [1.0] * len(weights), [False] * len(weights), 0)
    layers = []
    for w, grad, scale, is_owned in zip(
        weights, gradients.tensors, gradients.scales, owned or [True] * len(weights), strict=True
    ):
        layout = Layout.of_mask(w.parameter)
        if grad is not None:
            grad = layout.flat(grad if grad.layout == torch.strided else grad.to_dense())
        dtype = torch.float64 if double else torch.float32
        weight = layout.flat(local(w.parameter))
        means = {} if averages is None else {name: layout.flat(a) for name, a in averages.of(w).items()}
        layers.append(Layer(w.name, layout, weight, grad, dtype, scale, is_owned, means, w.grid))
    return layers
