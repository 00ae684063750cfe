"""The operations that a simplified graph has a class for, as nodes of the network file."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fggp.ship.graph import quantized
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
    Linear,
    MaxPool2d,
    Op,
)
from fggp.ship.network.description import Inexpressible
from fggp.ship.network.nodes import Operand, Writer


def known_operation(w: Writer, op: Op, inputs: Sequence[Operand]) -> Operand:
    """Write one operation that is no Call. inputs: what it reads, float32 or uint8."""
    assert op.output.dtype is not None
    dtype, sizes = op.output.dtype, op.output.sizes
    x, rest = inputs[0], inputs[1:]

    def node(name: str, read: Sequence[Operand | None], **attributes: object) -> Operand:
        return w.node(name, read, dtype, sizes, **attributes)  # type: ignore[arg-type]

    match op:
        case Conv2d():
            return node(
                "conv",
                [x, w.tensor(op.weight, "weight"), _optional(w, op.bias, "bias"), *rest],
                stride=op.stride,
                padding=op.padding,
                dilation=op.dilation,
                groups=op.groups,
                activation=op.activation,
            )
        case Linear():
            weights = w.tensor(op.weight, "weight"), _optional(w, op.bias, "bias")
            return node("linear", [x, *weights, *rest], activation=op.activation)
        case MaxPool2d():
            windows = {"kernel": op.kernel, "stride": op.stride, "padding": op.padding, "dilation": op.dilation}
            return node("max_pool", [x], **windows, ceil=op.ceil_mode)
        case AvgPool2d():
            return node(
                "average_pool",
                [x],
                kernel=op.kernel,
                stride=op.stride,
                padding=op.padding,
                ceil=op.ceil_mode,
                count_padding=op.count_include_pad,
                divisor=op.divisor_override,
            )
        case AdaptiveAvgPool2d():
            return node("adaptive_average_pool", [x], size=op.size)
        case Add():
            return node("add", [x, *rest], activation=op.activation)
        case Gate():
            return node("gate", [x, *rest], activation=op.activation)
        case Activate():
            return node("activate", [x], activation=op.activation)
        case Affine():
            scale = None if bool((op.scale == 1).all()) else w.tensor(op.scale.float(), "scale")
            shift = None if bool((op.shift == 0).all()) else w.tensor(op.shift.float(), "shift")
            return node("affine", [x, scale, shift], activation=op.activation)
        case Concat():
            return node("concat", inputs, dim=op.dim)
        case Channels():
            return node("channels", inputs, index=op.index)
        case Flatten():
            return node("flatten", [x])
        case quantized.Quantize():
            return node("quantize", [x], **_as("", op.to))
        case quantized.Dequantize():
            return node("dequantize", [x], **_as("", op.of))
        case quantized.QuantizedConv2d():
            windows = {"stride": op.stride, "padding": op.padding, "dilation": op.dilation}
            return node(
                "quantized_conv", _product(w, op, inputs), groups=op.groups, **windows, **_product_attributes(op)
            )
        case quantized.QuantizedLinear():
            return node("quantized_linear", _product(w, op, inputs), **_product_attributes(op))
        case quantized.QuantizedAdd():
            a, b = op.of
            attributes = {**_as("a_", a), **_as("b_", b), **_as("out_", op.to)}
            return node("quantized_add", [x, *rest], **attributes, activation=op.activation)
        case quantized.QuantizedMean():
            return node("quantized_mean", [x], **_as("", op.of))
    raise Inexpressible("the network file has no such operator")


def _product(w: Writer, op: quantized.QuantizedProduct, inputs: Sequence[Operand]) -> list[Operand | None]:
    """What a quantised product reads."""
    weight, bias = w.tensor(op.weight, "weight", quantized=True), _optional(w, op.bias, "bias")
    return [inputs[0], weight, bias, inputs[1] if len(inputs) > 1 else None, w.tensor(op.scale, "scale")]


def _product_attributes(op: quantized.QuantizedProduct) -> dict[str, object]:
    return {
        **_as("", op.of),
        **_as("residual_", op.residual_of),
        **_as("out_", op.to),
        "activation": op.activation,
    }


def _as(prefix: str, quantization: quantized.Quantization | None) -> dict[str, object]:
    if quantization is None:
        return {}
    return {f"{prefix}scale": quantization.scale, f"{prefix}zero": quantization.zero}


def _optional(w: Writer, tensor: Tensor | None, name: str) -> Operand | None:
    return None if tensor is None else w.tensor(tensor, name)
