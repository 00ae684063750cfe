"""Lowering a graph to steps for one batch size: what the kernels run, in which layouts, and what PyTorch runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from fggp.ship.graph.operations import (
    Activate,
    AdaptiveAvgPool2d,
    Add,
    Affine,
    AvgPool2d,
    Channels,
    Concat,
    Conv2d,
    Flatten,
    Gate,
    Graph,
    Linear,
    MaxPool2d,
    Op,
    Value,
)
from fggp.ship.runtime.instructions import Buffer, Convolve, Instruction, Product, Step, Torch
from fggp.ship.runtime.kernels import CActivation, CPool, Kernels
from fggp.ship.runtime.layout import (
    ActivationLayout,
    Margin,
    TensorKind,
    choose_layout,
    has_shape_for_any_batch,
    image_sizes,
    pixel_strides,
    shape_for_batch,
)
from fggp.ship.runtime.sparse_weight import SparseWeight

# With at most this number of weights for each plane of its unfolded input, unfolding takes longer than it saves: so in
# depthwise convolutions.
WEIGHTS_WORTH_UNFOLDING = 2

Key = tuple[Value, TensorKind]


def supported_kind(op: Op, graph: Graph) -> TensorKind | None:
    """How the kernels for this operation read its inputs; None if there are no kernels for it."""
    values = (*op.inputs, op.output)
    if any(v.dtype != torch.float32 or not has_shape_for_any_batch(v) for v in values):
        return None
    ranks = {len(v.shape) for v in values}
    batched = all(v.batched or (graph.batch is not None and v.shape[:1] == (graph.batch,)) for v in values)
    if isinstance(op, Linear):
        return TensorKind.IMAGES if ranks == {2} and batched else TensorKind.TOKENS
    if not batched:
        return None
    if isinstance(op, Conv2d):
        return TensorKind.IMAGES
    if isinstance(op, (MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, Flatten)):
        return TensorKind.IMAGES if 4 in ranks and ranks <= {2, 4} else None
    if isinstance(op, (Gate, Channels)):
        return TensorKind.IMAGES
    if isinstance(op, (Add, Activate)):
        return TensorKind.IMAGES if ranks in ({2}, {4}) else TensorKind.TOKENS
    if isinstance(op, Affine):
        return TensorKind.IMAGES if ranks in ({2}, {4}) else None
    if isinstance(op, Concat):
        return TensorKind.IMAGES if ranks in ({2}, {4}) and op.dim == 1 else None
    return None


class Lowering:
    """The steps of one graph for one batch size.

    Args:
        graph: the network.
        batch: the number of images.
        kernels: the kernels that run the instructions.
        lanes: the number of images in a cell: 1, or the length of a vector.
        sparse: the products that the kernels run, with their non-zero weights.

    Attributes:
        native: the operations that the kernels run, and how they read their inputs.
        steps: what to do, in order.
    """

    def __init__(
        self, graph: Graph, batch: int, kernels: Kernels, lanes: int, sparse: Mapping[Op, SparseWeight]
    ) -> None:
        self.graph, self.batch, self.kernels, self.lanes, self.sparse = graph, batch, kernels, lanes, sparse
        self.steps: list[Step] = []
        self.native = self._choose_native()
        self._margins, self._rows = self._choose_margins()
        # Excluding a product changes the native operations and the margins, so check the others again.
        while excluded := [op for op in self.native if isinstance(op, (Conv2d, Linear)) and self._exceeds_offsets(op)]:
            self.sparse = {op: weight for op, weight in self.sparse.items() if op not in excluded}
            self.native = self._choose_native()
            self._margins, self._rows = self._choose_margins()
        self._buffers: dict[Key, Buffer] = {}
        self._available_to_torch: set[Value] = set(graph.inputs)
        for op in graph.ops:
            kind = self.native.get(op)
            if kind is None:
                for value in op.inputs:
                    self._store_for_torch(value)
                self.steps.append(Torch(op))
                self._available_to_torch.add(op.output)
            else:
                self._lower(op, kind)
        for value in graph.outputs:
            if isinstance(value, Value):
                self._store_for_torch(value)

    def _choose_native(self) -> dict[Op, TensorKind]:
        """The operations that the kernels run: sparse products, and operations whose inputs all are in their layout."""
        chosen: dict[Op, TensorKind] = {}
        in_kernel_layout: set[Key] = set()
        for op in self.graph.ops:
            kind = supported_kind(op, self.graph)
            if kind is None:
                continue
            if op in self.sparse or (
                not isinstance(op, (Conv2d, Linear)) and all((value, kind) in in_kernel_layout for value in op.inputs)
            ):
                chosen[op] = kind
                in_kernel_layout.add((op.output, kind))
        return chosen

    # Margins: all readers of an activation determine the padding around it.

    def _choose_margins(self) -> tuple[dict[Key, Margin], dict[Key, int]]:
        """The margin of each activation that needs one, and the length of rows where several activations share it."""
        margins: dict[Key, Margin] = {}
        same_row = _DisjointSets()
        for op, kind in self.native.items():
            if not isinstance(op, Conv2d):
                continue
            unfolds = self._needs_unfolding(op)
            if self.lanes == 1 and not self._to_one_pixel(op) and not self._strided(op):
                # Vectors cross the ends of rows, so input and output need rows of the same length.
                same_row.join([(value, kind) for value in (*op.inputs[unfolds:], op.output)])
            if unfolds:
                continue
            reach = tuple(
                max(0, (k - 1) * d - p) for k, d, p in zip(op.weight.shape[2:], op.dilation, op.padding, strict=True)
            )
            beyond = 2 * self.kernels.lanes if self._strided(op) else 0
            margin = Margin(*op.padding, reach=(reach[0], reach[1] + beyond))
            key = (op.inputs[0], kind)
            margins[key] = margins.get(key, Margin()) | margin
        rows: dict[Key, int] = {}
        for group in same_row.groups():
            row = max(image_sizes(key[0].shape, key[1])[3] + margins.get(key, Margin()).columns for key in group)
            rows.update(dict.fromkeys(group, row))
        return margins, rows

    def _needs_unfolding(self, op: Conv2d) -> bool:
        """Whether the kernels do not support the stride, so that the input must be unfolded first."""
        if self.lanes == 1:
            return op.stride != (1, 1) and not self._to_one_pixel(op) and not self._strided(op)
        return op.stride not in ((1, 1), (2, 2))

    def _strided(self, op: Conv2d) -> bool:
        """Whether the kernels read a single image with gaps, instead of an unfolded copy of it."""
        if self.lanes > 1 or op.stride != (2, 2) or self._to_one_pixel(op):
            return False
        planes = op.inputs[0].shape[1] * op.weight.shape[2] * op.weight.shape[3]
        return self.sparse[op].values.numel() <= WEIGHTS_WORTH_UNFOLDING * planes

    def _to_one_pixel(self, op: Conv2d) -> bool:
        """Whether each output channel is one pixel of a single image (``lanes`` is 1), too few to fill a vector."""
        return self.lanes == 1 and op.output.shape[2:] == (1, 1)

    def _exceeds_offsets(self, op: Conv2d | Linear) -> bool:
        """Whether a product's input is too large for the 32-bit offsets of sparse weights."""
        if isinstance(op, Conv2d) and self._needs_unfolding(op):
            return self._unfolded_layout(op).exceeds_offsets
        return self._layout(op.inputs[0], self.native[op]).exceeds_offsets

    # Buffers, and conversions between the kernels' layout and PyTorch's.

    def _layout(self, value: Value, kind: TensorKind) -> ActivationLayout:
        lanes = 1 if kind is TensorKind.TOKENS else self.lanes
        key = (value, kind)
        shape = shape_for_batch(value, self.batch)
        return choose_layout(
            shape, kind, lanes, self.kernels.lanes, self._margins.get(key, Margin()), self._rows.get(key, 0)
        )

    def _output_buffer(self, op: Op, kind: TensorKind, may_overwrite: Buffer | None = None) -> Buffer:
        layout = self._layout(op.output, kind)
        if may_overwrite is not None and may_overwrite.layout != layout:
            may_overwrite = None
        buffer = self._buffers[op.output, kind] = Buffer(layout, may_overwrite)
        return buffer

    def _input_buffer(self, value: Value, kind: TensorKind) -> Buffer:
        """A value's buffer in the kernels' layout, with a step that loads it if it has none yet."""
        if (value, kind) not in self._buffers:
            self._store_for_torch(value)
            buffer = self._buffers[value, kind] = Buffer(self._layout(value, kind))
            strides = pixel_strides(shape_for_batch(value, self.batch), kind)
            self.steps.append(
                Instruction("load", (), (buffer,), lambda c: ((strides, c(buffer)), ()), caller_tensor=value)
            )
        return self._buffers[value, kind]

    def _store_for_torch(self, value: Value) -> None:
        """Add a step that stores a value as a tensor for PyTorch, if it is not one yet."""
        if value in self._available_to_torch:
            return
        self._available_to_torch.add(value)
        kind = next(kind for kind in TensorKind if (value, kind) in self._buffers)
        buffer = self._buffers[value, kind]
        strides = pixel_strides(shape_for_batch(value, self.batch), kind)
        self.steps.append(
            Instruction("store", (buffer,), (), lambda c: ((c(buffer), strides), ()), caller_tensor=value)
        )

    # Operations.

    def _lower(self, op: Op, kind: TensorKind) -> None:
        inputs = tuple(self._input_buffer(value, kind) for value in op.inputs)
        if isinstance(op, (Conv2d, Linear)):
            self._product_steps(op, kind, inputs)
        elif isinstance(op, (MaxPool2d, AvgPool2d)):
            self._pool_step(op, kind, inputs[0])
        elif isinstance(op, (Concat, Channels)):
            self._copy_steps(op, kind, inputs)
        else:
            self._plane_wise_step(op, kind, inputs)

    def _add(self, name: str, op: Op, reads: tuple[Buffer, ...], out: Buffer, *more: Any) -> None:
        self.steps.append(Instruction(name, reads, (out,), lambda c: ((*map(c, reads), c(out), *more), ()), op))

    def _plane_wise_step(self, op: Op, kind: TensorKind, inputs: tuple[Buffer, ...]) -> None:
        match op:
            case AdaptiveAvgPool2d():
                self._add("adaptive_average", op, inputs, self._output_buffer(op, kind))
            case Flatten():
                self._add("flatten", op, inputs, self._output_buffer(op, kind))
            case Add() | Gate():
                out = self._output_buffer(op, kind, may_overwrite=inputs[0])
                self._add("sum" if isinstance(op, Add) else "gate", op, inputs, out, CActivation.of(op.activation))
            case Activate():
                out = self._output_buffer(op, kind, may_overwrite=inputs[0])
                self._add("affine", op, inputs, out, None, None, CActivation.of(op.activation))
            case Affine():
                scale, shift = op.scale.float().contiguous(), op.shift.float().contiguous()
                out = self._output_buffer(op, kind, may_overwrite=inputs[0])
                more = (scale.data_ptr(), shift.data_ptr(), CActivation.of(op.activation))
                self.steps.append(
                    Instruction("affine", inputs, (out,), lambda c: ((c(inputs[0]), c(out), *more), (scale, shift)), op)
                )
            case _:
                raise AssertionError(f"no kernel for {op}")

    def _copy_steps(self, op: Concat | Channels, kind: TensorKind, inputs: tuple[Buffer, ...]) -> None:
        out = self._output_buffer(op, kind)
        index = torch.tensor(op.index if isinstance(op, Channels) else range(out.layout.channels))
        first = 0
        for read in inputs:
            after = first + read.layout.channels
            to = ((index >= first) & (index < after)).nonzero().squeeze(1)
            pairs = torch.stack((index[to] - first, to), 1).to(torch.int32).contiguous()
            self._copy_step(op, read, out, pairs)
            first = after

    def _copy_step(self, op: Op, read: Buffer, out: Buffer, pairs: torch.Tensor) -> None:
        self.steps.append(
            Instruction(
                "copy", (read,), (out,), lambda c: ((c(read), c(out), pairs.data_ptr(), len(pairs)), (pairs,)), op
            )
        )

    def _pool_step(self, op: MaxPool2d | AvgPool2d, kind: TensorKind, read: Buffer) -> None:
        out = self._output_buffer(op, kind)
        dilation = op.dilation if isinstance(op, MaxPool2d) else (1, 1)
        window = (op.kernel, op.stride, op.padding, dilation)
        if isinstance(op, MaxPool2d):
            self._window_step("max_pool", op, read, out, window, False, 0)
        else:
            self._window_step("average_pool", op, read, out, window, op.count_include_pad, op.divisor_override or 0)

    def _window_step(
        self,
        name: str,
        op: Op,
        read: Buffer,
        out: Buffer,
        window: Iterable[tuple[int, int]],
        count_padding: bool,
        divisor: float,
    ) -> None:
        pairs = list(window)
        self.steps.append(
            Instruction(
                name, (read,), (out,), lambda c: ((CPool(c(read), c(out), *pairs, count_padding, divisor),), ()), op
            )
        )

    def _product_steps(self, op: Conv2d | Linear, kind: TensorKind, inputs: tuple[Buffer, ...]) -> None:
        weight, read = self.sparse[op], inputs[0]
        residual = inputs[1] if len(inputs) > 1 else None
        padding, dilation, stride = (0, 0), (1, 1), 1
        if isinstance(op, Conv2d):
            if self._needs_unfolding(op):
                read, weight = self._unfold_step(op, read), weight.unfolded()
            else:
                padding, dilation, stride = op.padding, op.dilation, op.stride[0]
        out = self._output_buffer(op, kind, may_overwrite=residual if residual is not read else None)
        self.steps.append(
            Product((Convolve(op, weight, read, out, residual, padding, dilation, stride, op.activation),))
        )

    def _unfold_step(self, op: Conv2d, read: Buffer) -> Buffer:
        kernel = (op.weight.shape[2], op.weight.shape[3])
        out = Buffer(self._unfolded_layout(op))
        self._window_step("unfold", op, read, out, (kernel, op.stride, op.padding, op.dilation), False, 0)
        return out

    def _unfolded_layout(self, op: Conv2d) -> ActivationLayout:
        """The layout of a convolution's unfolded input: a channel for each input channel and kernel position."""
        channels = op.inputs[0].shape[1] * op.weight.shape[2] * op.weight.shape[3]
        shape = (self.batch, channels, *op.output.shape[2:])
        row = self._rows.get((op.output, TensorKind.IMAGES), 0)
        return choose_layout(shape, TensorKind.IMAGES, self.lanes, self.kernels.lanes, Margin(), row)


class _DisjointSets:
    """Disjoint sets of keys, which `join` unites."""

    def __init__(self) -> None:
        self._group: dict[Key, list[Key]] = {}

    def join(self, keys: list[Key]) -> None:
        joined: list[Key] = []
        for key in keys:
            for other in self._group.get(key, [key]):
                if other not in joined:
                    joined.append(other)
        for key in joined:
            self._group[key] = joined

    def groups(self) -> list[list[Key]]:
        return list({id(group): group for group in self._group.values()}.values())
