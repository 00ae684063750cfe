"""Activation functions: those that a graph knows, the ATen operators that are one, and how PyTorch computes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fggp.ship.graph.operations import RELU, Activation

aten = torch.ops.aten


def _elu(x: Tensor, negative: float, positive: float, inside: float) -> Tensor:
    return aten.elu.default(x, negative, positive, inside)  # type: ignore[no-any-return]


# How PyTorch computes each function, from the argument and the activation's numbers.
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "clamp": lambda x, low, high: F.relu(x) if (low, high) == RELU.numbers else torch.clamp(x, low, high),
    "leaky_relu": F.leaky_relu,
    "elu": lambda x, below, above, inside: _elu(x, below / above, above, inside),
    "hard_sigmoid": F.hardsigmoid,
    "hard_swish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "mish": F.mish,
}


def activated(x: Tensor, activation: Activation | None) -> Tensor:
    """An activation of a tensor, computed by PyTorch; None: the tensor itself."""
    return x if activation is None else FUNCTIONS[activation.name](x, *activation.numbers)


def recognise_activation(target: Any, arguments: dict[str, Any]) -> Activation | None:
    """The activation that a call of an ATen operator computes.

    Args:
        target: the operator.
        arguments: its arguments by name, with defaults.

    Returns:
        The activation; None if the call is none, or its settings are no finite numbers.
    """
    make = _ACTIVATIONS.get(target)
    settings = {name: x for name, x in arguments.items() if name != "self"}
    if make is None or not all(x is None or isinstance(x, (int, float, str)) for x in settings.values()):
        return None
    if any(isinstance(x, (int, float)) and not math.isfinite(x) for x in settings.values()):
        return None
    return make(settings)


def _clamp(a: dict[str, Any]) -> Activation:
    low, high = (a.get("min", a.get("min_val")), a.get("max", a.get("max_val")))
    return Activation("clamp", (-math.inf if low is None else float(low), math.inf if high is None else float(high)))


def _elu_of(a: dict[str, Any]) -> Activation | None:
    alpha, scale, inside = float(a["alpha"]), float(a["scale"]), float(a["input_scale"])
    return Activation("elu", (alpha * scale, scale, inside)) if scale else None


_SELU = (1.6732632423543772 * 1.0507009873554805, 1.0507009873554805, 1.0)
_ACTIVATIONS: dict[Any, Callable[[dict[str, Any]], Activation | None]] = {
    aten.relu.default: lambda a: RELU,
    aten.relu6.default: lambda a: Activation("clamp", (0.0, 6.0)),
    aten.hardtanh.default: _clamp,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_max.default: _clamp,
    aten.leaky_relu.default: lambda a: Activation("leaky_relu", (float(a["negative_slope"]),)),
    aten.elu.default: _elu_of,
    aten.selu.default: lambda a: Activation("elu", _SELU),
    aten.celu.default: lambda a: Activation("elu", (float(a["alpha"]), 1.0, 1 / a["alpha"])) if a["alpha"] else None,
    aten.hardsigmoid.default: lambda a: Activation("hard_sigmoid"),
    aten.hardswish.default: lambda a: Activation("hard_swish"),
    aten.sigmoid.default: lambda a: Activation("sigmoid"),
    aten.silu.default: lambda a: Activation("silu"),
    aten.tanh.default: lambda a: Activation("tanh"),
    aten.gelu.default: lambda a: Activation("gelu" if a["approximate"] == "none" else "gelu_tanh"),
    aten.mish.default: lambda a: Activation("mish"),
}
