"""Norms and softmax."""

from __future__ import annotations

from typing import Any

import torch

from fggp.ship.graph.calls import Call
from fggp.ship.network.aten.common import floats, number, optional, sizes_of
from fggp.ship.network.description import Inexpressible
from fggp.ship.network.nodes import Handler, Operand, Writer

aten = torch.ops.aten


def _layer_norm(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, weight, bias = floats(w, a["input"]), optional(w, a["weight"], "weight"), optional(w, a["bias"], "bias")
    dims = len(a["normalized_shape"])
    return w.node("layer_norm", [x, weight, bias], torch.float32, x.sizes, dims=dims, epsilon=a["eps"])


def _native_layer_norm(w: Writer, call: Call, a: dict[str, Any]) -> tuple[Operand, ...]:
    return (_layer_norm(w, call, a),)  # the two others, for gradients, are not computed


def _rms_norm(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, weight = floats(w, a["input"]), optional(w, a["weight"], "weight")
    epsilon = torch.finfo(torch.float32).eps if a["eps"] is None else a["eps"]
    dims = len(a["normalized_shape"])
    return w.node("rms_norm", [x, weight], torch.float32, x.sizes, dims=dims, epsilon=epsilon)


def _group_norm(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    inputs = [floats(w, a["input"]), optional(w, a["weight"], "weight"), optional(w, a["bias"], "bias")]
    groups = number(a["num_groups"], "num_groups")
    return w.node("group_norm", inputs, torch.float32, sizes_of(call), groups=groups, epsilon=a["eps"])


def _instance_norm(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    if not a["use_input_stats"]:
        return _statistics(w, call, a)
    x = floats(w, a["input"])
    inputs = [x, optional(w, a["weight"], "weight"), optional(w, a["bias"], "bias")]
    return w.node("group_norm", inputs, torch.float32, x.sizes, groups=_channels(x), epsilon=a["eps"])


def _batch_norm(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    if a["training"]:
        raise Inexpressible("it is in training mode")
    return _statistics(w, call, a)


def _statistics(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    """A norm by constant statistics, as a scale and a shift for each channel."""
    x, mean, var, weight, bias = (a[key] for key in ("input", "running_mean", "running_var", "weight", "bias"))
    if any(isinstance(t, Operand) for t in (mean, var, weight, bias)) or mean is None or var is None:
        raise Inexpressible("its statistics are not constant")
    scale = torch.rsqrt(var.double() + a["eps"]) * (1 if weight is None else weight.double())
    shift = -mean.double() * scale + (0 if bias is None else bias.double())
    x = floats(w, x)
    inputs = [x, w.tensor(scale.float(), "scale"), w.tensor(shift.float(), "shift")]
    return w.node("affine", inputs, torch.float32, x.sizes)


def _channels(x: Operand) -> int:
    if not isinstance(x.sizes[1], int):
        raise Inexpressible(f"its number of channels is {x.sizes[1]}, and must be fixed")
    return x.sizes[1]


def _softmax(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = w.cast(floats(w, a["self"]), torch.float32)
    dim, log = a["dim"] % max(x.rank, 1), True if "log" in str(call.target) else None
    if not x.rank:
        x = w.reshape(x, (1,))
    return w.reshape(w.node("softmax", [x], torch.float32, x.sizes, dim=dim, log=log), sizes_of(call))


HANDLERS: dict[Any, Handler] = {
    aten.layer_norm.default: _layer_norm,
    aten.native_layer_norm.default: _native_layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.group_norm.default: _group_norm,
    aten.instance_norm.default: _instance_norm,
    aten.batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: lambda w, call, a: (_statistics(w, call, a),),
    aten.softmax.int: _softmax,
    aten._softmax.default: _softmax,
    aten.log_softmax.int: _softmax,
    aten._log_softmax.default: _softmax,
    aten.special_log_softmax.default: _softmax,
    aten.special_softmax.default: _softmax,
}
