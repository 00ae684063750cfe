"""A network of whole numbers as one of floats that QuantizeLinear and DequantizeLinear of ONNX round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fggp.ship.graph.calls import Call
from fggp.ship.graph.operations import Activate, Activation, AdaptiveAvgPool2d, Add, Graph, Op, Value
from fggp.ship.graph.quantized import (
    Dequantize,
    Quantization,
    Quantize,
    QuantizedAdd,
    QuantizedConv2d,
    QuantizedMean,
    QuantizedProduct,
    quantize,
)

aten = torch.ops.aten
EVERY_NUMBER = [0, 255]
"""The first and the last whole number."""


def with_nodes(graph: Graph) -> Graph:
    """The same network for `torch.onnx.export`. PyTorch traces it, but does not compute it: the nodes are ONNX's own.

    What were whole numbers are floats that a pair of nodes rounds. Runtimes find their int8 operators by these pairs.
    Sums and activations stay in float32 between a product and the rounding of its result, as in fggp's kernels.

    Args:
        graph: of a quantised network.
    """
    floats: dict[Value, Value] = {}  # in the place of the values of whole numbers
    stood_for: dict[Value, Quantization] = {}
    ops: list[Op] = []
    for op in graph.ops:
        read = [floats.get(v, v) for v in op.inputs]
        own = _of_floats(op, read)
        ops += own
        result = own[-1].output if own else read[0]
        if op.output.dtype == torch.uint8:
            to = stood_for[op.output] = getattr(op, "to", None) or stood_for[op.inputs[0]]
            ops.append(_rounding(result, to, _float(op.output, "rounded")))
            result = ops[-1].output
        if result is not op.output:
            floats[op.output] = result
    return replace(
        graph, ops=tuple(ops), outputs=tuple(floats.get(x, x) if isinstance(x, Value) else x for x in graph.outputs)
    )


def _of_floats(op: Op, read: Sequence[Value]) -> list[Op]:
    """An operation on floats that are rounded; the last one computes its result. Conversions are none."""
    y = _float(op.output, "float")
    match op:
        case Quantize() | Dequantize():
            return []
        case QuantizedAdd():
            return [Add(tuple(read), y, _needed(op.activation, op.to))]
        case QuantizedMean():
            return [AdaptiveAvgPool2d(tuple(read), y, (1, 1))]
        case QuantizedProduct():
            ops = _product(op, read[0])
            if len(read) > 1:
                ops.append(Add((ops[-1].output, read[1]), _float(op.output, "sum")))
            if (activation := _needed(op.activation, op.to)) is not None:
                ops.append(Activate((ops[-1].output,), y, activation))
            return ops
    output = y if op.output.dtype == torch.uint8 else op.output
    return [replace(op.with_inputs(dict(zip(op.inputs, read, strict=True))), output=output)]


def _product(op: QuantizedProduct, x: Value) -> list[Op]:
    """A product with its bias. The weight stays in int8, for a node to convert."""
    scale = op.scale / torch.tensor(op.of.scale)
    zero = torch.zeros_like(scale, dtype=torch.int8)
    y = _float(op.output, "product")
    if isinstance(op, QuantizedConv2d):
        weight = _float(op.output, "weight", op.weight.shape)
        window = op.stride, op.padding, op.dilation, op.groups
        return [
            Call.of(dequantize_linear, (op.weight, scale, zero, 0), {}, weight),
            Call.of(aten.conv2d.default, (x, weight, op.bias, *window), {}, y),
        ]
    # As a plain product, which runtimes have in int8 for vectors and for sequences.
    columns = op.weight.t().contiguous()
    weight = _float(op.output, "weight", columns.shape)
    ops: list[Op] = [
        Call.of(dequantize_linear, (columns, scale, zero, 1), {}, weight),
        Call.of(aten.matmul.default, (x, weight), {}, y),
    ]
    if op.bias is not None:
        ops.append(Call.of(aten.add.Tensor, (y, op.bias), {}, _float(op.output, "biased")))
    return ops


def _needed(activation: Activation | None, to: Quantization | None) -> Activation | None:
    """A clamp, but None if rounding clamps as much: runtimes recognise the pair at once after a product or sum."""
    if activation is not None and to is not None:
        limits = quantize(torch.tensor(activation.numbers), to).tolist()
        return None if limits == EVERY_NUMBER else activation
    return activation


def _rounding(x: Value, to: Quantization, output: Value) -> Op:
    return Call.of(rounded, (x, torch.tensor(to.scale), torch.tensor(to.zero, dtype=torch.uint8)), {}, output)


def rounded(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """A float as the nearest that a whole number stands for."""
    whole = torch.onnx.ops.symbolic("QuantizeLinear", (x, scale, zero), dtype=zero.dtype, shape=x.shape)
    return torch.onnx.ops.symbolic("DequantizeLinear", (whole, scale, zero), dtype=x.dtype, shape=x.shape)


def dequantize_linear(x: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
    """What whole numbers stand for, with a scale for each place of a dimension."""
    inputs = x, scale, zero
    return torch.onnx.ops.symbolic("DequantizeLinear", inputs, {"axis": axis}, dtype=scale.dtype, shape=x.shape)


def _float(v: Value, what: str, shape: Sequence[int] | None = None) -> Value:
    """A value of floats beside one of a graph; of the same shape, or of a constant one."""
    like = replace(v, name=f"{v.name}_{what}", dtype=torch.float32)
    return like if shape is None else replace(like, shape=tuple(shape), sizes=tuple(shape))
