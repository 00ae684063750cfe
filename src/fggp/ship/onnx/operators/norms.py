"""Norms and softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fggp.ship.network.description import Inexpressible
from fggp.ship.onnx.builder import Builder
from fggp.ship.onnx.nodes import Handler, Node, by_name
from fggp.ship.onnx.operands import Constant, Operand, Running, constant_array
from fggp.ship.onnx.sizes import Size, product

aten = torch.ops.aten


def _batch_norm(b: Builder, n: Node) -> Operand:
    """y = (x - mean) / sqrt(var + epsilon) * scale + shift, whose statistics are constant."""
    if n.get("training_mode", 0) or not n.get("spatial", 1):
        raise Inexpressible("it is in training mode, or has statistics for each pixel")
    x, scale, shift, mean, var = (n.floats(i) for i in range(5))
    for i, name in enumerate(("scale", "B", "input_mean", "input_var"), 1):
        constant_array(n.input(i), name)
    tensors = [b.argument(t) for t in (scale, shift, mean, var)]
    epsilon = n.get("epsilon", 1e-5)
    x = b.running(x)
    b.same(x.sizes[1], scale.sizes[0])
    return b.call(aten.batch_norm.default, x.value, *tensors, False, 0.1, epsilon, False, sizes=x.sizes)


def _layer_norm(b: Builder, n: Node) -> Operand:
    x, weight, bias = n.floats(0), n.floats(1), n.optional(2)
    axis = n.axis(x.rank, -1)
    shape = x.sizes[axis:]
    if weight.rank == len(shape):
        shape = tuple(b.same(a, c) for a, c in zip(shape, weight.sizes, strict=True))
    args = [None if t is None else b.argument(_of_shape(b, t, shape)) for t in (weight, bias)]
    sizes = [b.size(size) for size in shape]
    return b.call(aten.layer_norm.default, b.argument(x), sizes, *args, n.get("epsilon", 1e-5), sizes=x.sizes)


def _rms_norm(b: Builder, n: Node) -> Operand:
    x, weight = n.floats(0), n.floats(1)
    axis = n.axis(x.rank, -1)
    weight = _of_shape(b, weight, x.sizes[axis:])
    args = [b.size(size) for size in x.sizes[axis:]], b.argument(weight), n.get("epsilon", 1e-5)
    return b.call(aten.rms_norm.default, b.argument(x), *args, sizes=x.sizes)


def _of_shape(b: Builder, t: Operand, shape: Sequence[Size]) -> Operand:
    """A weight of the shape of what is normalised."""
    if t.sizes == tuple(shape):
        return t
    if isinstance(t, Constant) and all(isinstance(size, int) for size in shape):
        return Constant(np.ascontiguousarray(np.broadcast_to(t.array, shape)), t.name)
    return b.expand(t, shape)


def _group_norm(b: Builder, n: Node) -> Operand:
    """Before opset 21 scale and shift were for each group."""
    x, scale, shift = n.floats(0), n.floats(1), n.floats(2)
    groups = n.get("num_groups")
    if n.opset < 21:
        channels = x.sizes[1]
        if not isinstance(channels, int):
            raise Inexpressible(f"its number of channels is {channels}; it must be fixed")
        scale, shift = (
            Constant(np.repeat(constant_array(t, "scale and bias"), channels // groups)) for t in (scale, shift)
        )
    args = b.argument(scale), b.argument(shift), n.get("epsilon", 1e-5)
    return b.call(aten.group_norm.default, b.argument(x), groups, *args, sizes=x.sizes)


def _instance_norm(b: Builder, n: Node) -> Operand:
    x, scale, shift = n.floats(0), n.floats(1), n.floats(2)
    channels = x.sizes[1]
    if not isinstance(channels, int):
        raise Inexpressible(f"its number of channels is {channels}; it must be fixed")
    args = channels, b.argument(scale), b.argument(shift), n.get("epsilon", 1e-5)
    return b.call(aten.group_norm.default, b.argument(x), *args, sizes=x.sizes)


def _softmax(target: Any) -> Handler:
    def write(b: Builder, n: Node) -> Operand:
        x = n.floats(0)
        if n.opset >= 13:
            return softmax(b, x, n.axis(x.rank, -1), target)
        # Over all dimensions from the axis on.
        axis = n.axis(x.rank, 1)
        if axis == x.rank - 1:
            return softmax(b, x, axis, target)
        flat = b.reshape(x, (product(x.sizes[:axis]), product(x.sizes[axis:])))
        return b.reshape(softmax(b, flat, 1, target), x.sizes)

    return write


def softmax(b: Builder, x: Operand, dim: int, target: Any = aten.softmax.int) -> Running:
    """Softmax of one dimension."""
    return b.call(target, b.argument(x), dim, sizes=x.sizes)


def _lp_normalised(b: Builder, n: Node) -> Operand:
    x, order = n.floats(0), n.get("p", 2)
    dim = n.axis(x.rank, -1)
    sizes = [1 if i == dim else size for i, size in enumerate(x.sizes)]
    length = b.call(aten.linalg_vector_norm.default, b.argument(x), order, [dim], True, sizes=sizes)
    zero = b.pointwise(aten.eq.Scalar, length, 0.0, dtype=torch.bool)  # such vectors stay as they are
    return b.pointwise(aten.div.Tensor, x, b.pointwise(aten.add.Tensor, length, b.cast(zero, torch.float32)))


def _local_response(b: Builder, n: Node) -> Operand:
    """x / (bias + alpha / size * the sum of squares of the channels around) ** beta."""
    x, size = n.floats(0), n.get("size")
    channels = x.sizes[1]
    squares = b.pointwise(aten.mul.Tensor, x, x)
    before = (size - 1) // 2
    padded = b.pad(squares, [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.rank - 2)])
    total: Operand = b.slice(padded, 1, 0, channels)
    for i in range(1, size):
        total = b.pointwise(aten.add.Tensor, total, b.slice(padded, 1, i, channels + i))
    scaled = b.pointwise(aten.mul.Tensor, total, n.get("alpha", 1e-4) / size)
    base = b.pointwise(aten.add.Tensor, scaled, n.get("bias", 1.0))
    return b.pointwise(aten.div.Tensor, x, b.pointwise(aten.pow.Tensor_Scalar, base, n.get("beta", 0.75)))


HANDLERS = by_name(
    {
        "BatchNormalization": _batch_norm,
        "LayerNormalization": _layer_norm,
        "RMSNormalization SimplifiedLayerNormalization": _rms_norm,
        "GroupNormalization": _group_norm,
        "InstanceNormalization": _instance_norm,
        "Softmax": _softmax(aten.softmax.int),
        "LogSoftmax": _softmax(aten.log_softmax.int),
        "LpNormalization": _lp_normalised,
        "LRN": _local_response,
    }
)
