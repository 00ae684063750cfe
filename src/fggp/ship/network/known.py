"""The operations that a simplified graph has a class for, as nodes of the network file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
    """Write one operation that is no Call. inputs: what it reads, all float32."""
    sizes = op.output.sizes
    x, rest = inputs[0], inputs[1:]

    def node(name: str, read: Sequence[Operand | None], **attributes: object) -> Operand:
        return w.node(name, read, torch.float32, sizes, **attributes)  # type: ignore[arg-type]

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
    raise Inexpressible("the network file has no such operator")


def _optional(w: Writer, tensor: Tensor | None, name: str) -> Operand | None:
    return None if tensor is None else w.tensor(tensor, name)
