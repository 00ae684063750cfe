"""A graph for one batch size, made steps: which operations the kernels run, in which layouts, and what PyTorch runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_
from typing import Any

import torch

from fggp.ship.graph.operations import (
    AdaptiveAvgPool2d,
    Add,
    Affine,
    AvgPool2d,
    Call,
    Concat,
    Conv2d,
    Flatten,
    Graph,
    Linear,
    MaxPool2d,
    Op,
    ReLU,
    Value,
)
from fggp.ship.runtime.instructions import Buffer, Convolve, Elementwise, Instruction, Product, Step, Torch
from fggp.ship.runtime.kernels import CPool, Kernels
from fggp.ship.runtime.layout import Kind, Layout, Margin, lay_out, like, scales, sizes, strides
from fggp.ship.runtime.sparse_weight import SparseWeight

aten = torch.ops.aten
# Functions of one number that leave zero as it is: PyTorch runs them on an activation wherever its pixels lie.
POINTWISE = {
    aten.gelu.default,
    aten.silu.default,
    aten.hardswish.default,
    aten.tanh.default,
    aten.leaky_relu.default,
    aten.elu.default,
    aten.mish.default,
    aten.relu6.default,
}

Key = tuple[Value, Kind]


def kind_of(op: Op, graph: Graph) -> Kind | None:
    """How the operation reads its inputs, where there are kernels for it; None: there are none."""
    values = (*op.inputs, op.output)
    if any(v.dtype != torch.float32 or not scales(v) for v in values):
        return None
    ranks = {len(v.shape) for v in values}
    batched = all(v.batched or (graph.batch is not None and v.shape[:1] == (graph.batch,)) for v in values)
    if isinstance(op, Linear):
        return Kind.IMAGES if ranks == {2} and batched else Kind.TOKENS
    if not batched:
        return None
    if isinstance(op, Conv2d):
        return Kind.IMAGES
    if isinstance(op, (MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, Flatten)):
        return Kind.IMAGES if 4 in ranks and ranks <= {2, 4} else None
    if isinstance(op, (Add, ReLU)) or (isinstance(op, Call) and op.target in POINTWISE and len(op.inputs) == 1):
        return Kind.IMAGES if ranks in ({2}, {4}) else Kind.TOKENS
    if isinstance(op, Affine):
        return Kind.IMAGES if ranks in ({2}, {4}) else None
    if isinstance(op, Concat):
        return Kind.IMAGES if ranks in ({2}, {4}) and op.dim == 1 else None
    return None


class Lowering:
    """Makes the steps of one graph.

    Args:
        graph: what to run.
        batch: images.
        kernels: what runs the instructions.
        lanes: images in a pixel: 1 or a whole vector.
        sparse: the weights of the products that the kernels are to run.
    """

    def __init__(
        self, graph: Graph, batch: int, kernels: Kernels, lanes: int, sparse: Mapping[Op, SparseWeight]
    ) -> None:
        self.graph, self.batch, self.kernels, self.lanes, self.sparse = graph, batch, kernels, lanes, sparse
        self.steps: list[Step] = []
        self.native = self._choose()
        self._margins, self._rows = self._surroundings()
        while far := [op for op in self.native if isinstance(op, (Conv2d, Linear)) and self._is_far(op)]:
            self.sparse = {op: weight for op, weight in self.sparse.items() if op not in far}
            self.native = self._choose()
            self._margins, self._rows = self._surroundings()
        self._buffers: dict[Key, Buffer] = {}
        self._in_torch: set[Value] = set(graph.inputs)
        for op in graph.ops:
            kind = self.native.get(op)
            if kind is None:
                for value in op.inputs:
                    self._to_torch(value)
                self.steps.append(Torch(op))
                self._in_torch.add(op.output)
            else:
                self._lower(op, kind)
        for value in graph.outputs:
            if isinstance(value, Value):
                self._to_torch(value)

    def _choose(self) -> dict[Op, Kind]:
        """Which operations the kernels run: sparse products, and what else reads what is theirs already."""
        chosen: dict[Op, Kind] = {}
        theirs: set[Key] = set()
        for op in self.graph.ops:
            kind = kind_of(op, self.graph)
            if kind is None:
                continue
            if op in self.sparse or (
                not isinstance(op, (Conv2d, Linear)) and all((value, kind) in theirs for value in op.inputs)
            ):
                chosen[op] = kind
                theirs.add((op.output, kind))
        return chosen

    # Surroundings: what lies around an activation is decided by all that read it.

    def _surroundings(self) -> tuple[dict[Key, Margin], dict[Key, int]]:
        margins: dict[Key, Margin] = {}
        linked, alike = _Links(), _Links()
        for op, kind in self.native.items():
            # PyTorch goes over the memory as a whole, zeros included. (Tokens have nothing around them.)
            if isinstance(op, Call) and kind is Kind.IMAGES:
                for links in (linked, alike):
                    links.join([(op.inputs[0], kind), (op.output, kind)])
            if not isinstance(op, Conv2d):
                continue
            unfolds = self._by_unfolding(op)
            if self.lanes == 1 and not self._to_one_pixel(op):
                # Vectors run over the ends of rows, so what goes in and what comes out have rows of one length.
                linked.join([(value, kind) for value in (*op.inputs[unfolds:], op.output)])
            if unfolds:
                continue
            beyond = tuple(
                max(0, (k - 1) * d - p) for k, d, p in zip(op.weight.shape[2:], op.dilation, op.padding, strict=True)
            )
            margin = Margin(*op.padding, reach=(beyond[0], beyond[1]))
            read = (op.inputs[0], kind)
            margins[read] = margins.get(read, Margin()) | margin
        for group in alike.groups():
            widest = reduce(or_, (margins.get(key, Margin()) for key in group))
            margins.update(dict.fromkeys(group, widest))
        rows: dict[Key, int] = {}
        for group in linked.groups():
            row = max(sizes(key[0].shape, key[1])[3] + margins.get(key, Margin()).columns for key in group)
            rows.update(dict.fromkeys(group, row))
        return margins, rows

    def _by_unfolding(self, op: Conv2d) -> bool:
        if self.lanes == 1:
            return op.stride != (1, 1) and not self._to_one_pixel(op)
        return op.stride not in ((1, 1), (2, 2))

    def _to_one_pixel(self, op: Conv2d) -> bool:
        """Whether single images come out as one pixel a channel, which no vector could run along."""
        return self.lanes == 1 and op.output.shape[2:] == (1, 1)

    def _is_far(self, op: Conv2d | Linear) -> bool:
        """Whether a product's input is too large for the kernels."""
        if isinstance(op, Conv2d) and self._by_unfolding(op):
            return self._unfolded(op).far
        return self._layout(op.inputs[0], self.native[op]).far

    # Buffers, and the ways in and out.

    def _layout(self, value: Value, kind: Kind) -> Layout:
        lanes = 1 if kind is Kind.TOKENS else self.lanes
        key = (value, kind)
        shape = like(value, self.batch)
        return lay_out(shape, kind, lanes, self.kernels.lanes, self._margins.get(key, Margin()), self._rows.get(key, 0))

    def _output(self, op: Op, kind: Kind, over: Buffer | None = None) -> Buffer:
        layout = self._layout(op.output, kind)
        if over is not None and over.layout != layout:
            over = None
        buffer = self._buffers[op.output, kind] = Buffer(layout, over)
        return buffer

    def _input(self, value: Value, kind: Kind) -> Buffer:
        if (value, kind) not in self._buffers:
            self._to_torch(value)
            buffer = self._buffers[value, kind] = Buffer(self._layout(value, kind))
            where = strides(like(value, self.batch), kind)
            self.steps.append(Instruction("load", (), (buffer,), lambda c: ((where, c(buffer)), ()), slot=value))
        return self._buffers[value, kind]

    def _to_torch(self, value: Value) -> None:
        if value in self._in_torch:
            return
        self._in_torch.add(value)
        kind = next(kind for kind in Kind if (value, kind) in self._buffers)
        buffer = self._buffers[value, kind]
        where = strides(like(value, self.batch), kind)
        self.steps.append(Instruction("store", (buffer,), (), lambda c: ((c(buffer), where), ()), slot=value))

    # Operations.

    def _lower(self, op: Op, kind: Kind) -> None:
        inputs = tuple(self._input(value, kind) for value in op.inputs)
        if isinstance(op, (Conv2d, Linear)):
            self._product(op, kind, inputs)
        elif isinstance(op, (MaxPool2d, AvgPool2d)):
            self._pool(op, kind, inputs[0])
        elif isinstance(op, Call):
            out = self._output(op, kind, over=inputs[0])
            self.steps.append(Elementwise(op, (inputs[0],), (out,)))
        elif isinstance(op, Concat):
            self._concat(op, kind, inputs)
        else:
            self._plane_wise(op, kind, inputs)

    def _add(self, name: str, op: Op, reads: tuple[Buffer, ...], out: Buffer, *more: Any) -> None:
        self.steps.append(Instruction(name, reads, (out,), lambda c: ((*map(c, reads), c(out), *more), ()), op))

    def _plane_wise(self, op: Op, kind: Kind, inputs: tuple[Buffer, ...]) -> None:
        match op:
            case AdaptiveAvgPool2d():
                self._add("adaptive_average", op, inputs, self._output(op, kind))
            case Flatten():
                self._add("flatten", op, inputs, self._output(op, kind))
            case Add():
                self._add("sum", op, inputs, self._output(op, kind, over=inputs[0]), int(op.relu))
            case ReLU():
                self._add("affine", op, inputs, self._output(op, kind, over=inputs[0]), None, None, 1)
            case Affine():
                scale, shift = op.scale.float().contiguous(), op.shift.float().contiguous()
                out = self._output(op, kind, over=inputs[0])
                more = (scale.data_ptr(), shift.data_ptr(), int(op.relu))
                self.steps.append(
                    Instruction("affine", inputs, (out,), lambda c: ((c(inputs[0]), c(out), *more), (scale, shift)), op)
                )
            case _:
                raise AssertionError(f"no kernel for {op}")

    def _concat(self, op: Concat, kind: Kind, inputs: tuple[Buffer, ...]) -> None:
        out = self._output(op, kind)
        first = 0
        for read in inputs:
            self._add("copy", op, (read,), out, first)
            first += read.layout.channels

    def _pool(self, op: MaxPool2d | AvgPool2d, kind: Kind, read: Buffer) -> None:
        out = self._output(op, kind)
        dilation = op.dilation if isinstance(op, MaxPool2d) else (1, 1)
        window = (op.kernel, op.stride, op.padding, dilation)
        if isinstance(op, MaxPool2d):
            self._window("max_pool", op, read, out, window, False, 0)
        else:
            self._window("average_pool", op, read, out, window, op.count_include_pad, op.divisor_override or 0)

    def _window(
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

    def _product(self, op: Conv2d | Linear, kind: Kind, inputs: tuple[Buffer, ...]) -> None:
        weight, read = self.sparse[op], inputs[0]
        residual = inputs[1] if len(inputs) > 1 else None
        padding, dilation, stride = (0, 0), (1, 1), 1
        if isinstance(op, Conv2d):
            if self._by_unfolding(op):
                read, weight = self._unfold(op, read), weight.unfolded()
            else:
                padding, dilation, stride = op.padding, op.dilation, op.stride[0]
        out = self._output(op, kind, over=residual if residual is not read else None)
        self.steps.append(Product((Convolve(op, weight, read, out, residual, padding, dilation, stride, op.relu),)))

    def _unfold(self, op: Conv2d, read: Buffer) -> Buffer:
        kernel = (op.weight.shape[2], op.weight.shape[3])
        out = Buffer(self._unfolded(op))
        self._window("unfold", op, read, out, (kernel, op.stride, op.padding, op.dilation), False, 0)
        return out

    def _unfolded(self, op: Conv2d) -> Layout:
        """A convolution's input with a channel for each input channel and kernel position."""
        channels = op.inputs[0].shape[1] * op.weight.shape[2] * op.weight.shape[3]
        shape = (self.batch, channels, *op.output.shape[2:])
        row = self._rows.get((op.output, Kind.IMAGES), 0)
        return lay_out(shape, Kind.IMAGES, self.lanes, self.kernels.lanes, Margin(), row)


class _Links:
    """Sets of keys that have something in common, joined one by one."""

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
