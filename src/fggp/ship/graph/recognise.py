"""Recognising calls of ATen operators as operations that a graph has a class for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fggp.ship.graph.activations import recognise_activation
from fggp.ship.graph.calls import Call, arguments
from fggp.ship.graph.operations import (
    Activate,
    AdaptiveAvgPool2d,
    Add,
    Affine,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    Gate,
    Linear,
    MaxPool2d,
    Op,
    Pair,
    Value,
)

aten = torch.ops.aten


def recognise(call: Call) -> list[Op]:
    """The operations that are equivalent to a call, or the call itself. A call on other dtypes than float32 is kept."""
    recogniser = _RECOGNISERS.get(call.target, _activation)
    if not isinstance(call.target, OpOverload):
        return [call]
    if not all(v.dtype in (torch.float32, None) for v in (*call.inputs, call.output)):
        return [call]
    ops = recogniser(call, arguments(call.target, call.args, call.kwargs)) or [call]
    # A call whose constants have another dtype or layout, or are of a subclass, is left to PyTorch.
    plain = all(isinstance(op, Call) or all(map(_is_plain, op.constants())) for op in ops)
    return ops if plain else [call]


def _is_plain(t: Tensor) -> bool:
    floats = t.dtype == torch.float32 or t.dtype == torch.float64
    return floats and type(t) is Tensor and t.layout == torch.strided


Recognised = list[Op] | None


def _conv2d(call: Call, a: dict[str, Any]) -> Recognised:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    if not (_is_image(x) and _is_float_constant(weight, 4) and (bias is None or _is_float_constant(bias, 1))):
        return None
    if a.get("transposed"):
        return None
    dilation = _pair(a["dilation"])
    padding = a["padding"]
    if padding == "valid":
        padding = 0
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(t % 2 for t in total):  # uneven padding
            return None
        padding = [t // 2 for t in total]
    window = _pair(a["stride"]), _pair(padding), dilation, int(a["groups"])
    return [Conv2d((x,), call.output, weight, bias, *window, layer=call.output.module)]


def _linear(call: Call, a: dict[str, Any]) -> Recognised:
    return _linear_of(call, a["input"], a["weight"], a["bias"])


def _addmm(call: Call, a: dict[str, Any]) -> Recognised:
    if a["alpha"] != 1 or a["beta"] != 1 or not isinstance(a["mat2"], Tensor):
        return None
    return _linear_of(call, a["mat1"], a["mat2"].t(), a["self"])


def _matmul(call: Call, a: dict[str, Any]) -> Recognised:
    other = a.get("other", a.get("mat2"))
    if not isinstance(other, Tensor) or other.dim() != 2:
        return None
    return _linear_of(call, a["self"], other.t(), None)


def _linear_of(call: Call, x: Any, weight: Any, bias: Any) -> Recognised:
    if not (isinstance(x, Value) and len(x.shape) >= 2 and _is_float_constant(weight, 2)):
        return None
    if bias is not None and not (_is_float_constant(bias, 1) and len(bias) == len(weight)):
        return None
    return [Linear((x,), call.output, weight, bias, layer=call.output.module)]


def _batch_norm(call: Call, a: dict[str, Any]) -> Recognised:
    x, mean, var = a["input"], a["running_mean"], a["running_var"]
    given = [t for t in (mean, var, a["weight"], a["bias"]) if t is not None]
    if a["training"] or mean is None or var is None or not all(_is_float_constant(t, 1) for t in given):
        return None
    scale = torch.rsqrt(var.double() + a["eps"])
    if a["weight"] is not None:
        scale = a["weight"].double() * scale
    shift = -mean.double() * scale
    if a["bias"] is not None:
        shift = a["bias"].double() + shift
    return _affine(call, x, scale, shift)


def _add(call: Call, a: dict[str, Any]) -> Recognised:
    x, y = a["self"], a["other"]
    if a["alpha"] != 1:
        return None
    if isinstance(x, Value) and isinstance(y, Value):
        return [Add((x, y), call.output)] if _are_tensors(x, y) and x.sizes == y.sizes else None
    if not isinstance(x, Value):
        x, y = y, x
    shift = _per_channel(call, x, y)
    return None if shift is None else _affine(call, x, torch.ones_like(shift), shift)


def _sub(call: Call, a: dict[str, Any]) -> Recognised:
    shift = _per_channel(call, a["self"], a["other"])
    return None if shift is None or a["alpha"] != 1 else _affine(call, a["self"], torch.ones_like(shift), -shift)


def _mul(call: Call, a: dict[str, Any]) -> Recognised:
    x, y = a["self"], a["other"]
    if isinstance(x, Value) and isinstance(y, Value):
        return _gate(call, x, y) or _gate(call, y, x)
    if not isinstance(x, Value):
        x, y = y, x
    scale = _per_channel(call, x, y)
    return None if scale is None else _affine(call, x, scale, torch.zeros_like(scale))


def _gate(call: Call, x: Value, gate: Value) -> Recognised:
    if not _is_image(x) or not _is_image(gate) or x.sizes != call.output.sizes:
        return None
    return [Gate((x, gate), call.output)] if gate.sizes == (*x.sizes[:2], 1, 1) else None


def _div(call: Call, a: dict[str, Any]) -> Recognised:
    divisor = _per_channel(call, a["self"], a["other"])
    return None if divisor is None else _affine(call, a["self"], 1 / divisor, torch.zeros_like(divisor))


def _affine(call: Call, x: Any, scale: Tensor, shift: Tensor) -> Recognised:
    """An affine map, if its numbers are finite in float32: NaN and infinity must not be folded elsewhere."""
    finite = bool(scale.float().isfinite().all()) and bool(shift.float().isfinite().all())
    return [Affine((x,), call.output, scale, shift)] if finite and isinstance(x, Value) and len(x.shape) > 1 else None


def _per_channel(call: Call, x: Any, constant: Any) -> Tensor | None:
    """A constant as one number per channel of x, [N, C] or [N, C, H, W]: float64 [C]; None if it is not."""
    if not isinstance(x, Value) or len(x.shape) not in (2, 4) or x.sizes != call.output.sizes:
        return None
    if isinstance(constant, bool) or not isinstance(constant, (int, float, Tensor)) or isinstance(x.sizes[1], str):
        return None
    if not isinstance(constant, Tensor):
        return torch.full((x.shape[1],), constant, dtype=torch.float64)
    if not _is_plain(constant) or constant.dim() > len(x.shape):
        return None
    shape = (1,) * (len(x.shape) - constant.dim()) + tuple(constant.shape)
    if any(size != 1 for i, size in enumerate(shape) if i != 1):
        return None
    return constant.double().reshape(-1).expand(x.shape[1]).contiguous()


def _max_pool2d(call: Call, a: dict[str, Any]) -> Recognised:
    if not _is_image(a["self"]):
        return None
    kernel = _pair(a["kernel_size"])
    stride = _pair(a["stride"] or kernel)
    windows = kernel, stride, _pair(a["padding"]), _pair(a["dilation"])
    return [MaxPool2d((a["self"],), call.output, *windows, bool(a["ceil_mode"]))]


def _avg_pool2d(call: Call, a: dict[str, Any]) -> Recognised:
    if not _is_image(a["self"]):
        return None
    kernel = _pair(a["kernel_size"])
    windows = kernel, _pair(a["stride"] or kernel), _pair(a["padding"])
    how = bool(a["ceil_mode"]), bool(a["count_include_pad"]), a["divisor_override"]
    return [AvgPool2d((a["self"],), call.output, *windows, *how)]


def _adaptive_avg_pool2d(call: Call, a: dict[str, Any]) -> Recognised:
    size = a["output_size"]
    if not _is_image(a["self"]) or not all(isinstance(s, int) for s in size):
        return None
    return [AdaptiveAvgPool2d((a["self"],), call.output, _pair(size))]


def _mean(call: Call, a: dict[str, Any]) -> Recognised:
    x, dims = a["self"], a["dim"]
    if not _is_image(x) or dims is None or a["dtype"] is not None or sorted(d % 4 for d in dims) != [2, 3]:
        return None
    if a["keepdim"]:
        return [AdaptiveAvgPool2d((x,), call.output, (1, 1))]
    y = call.output
    pooled = replace(y, name=f"{y.name}_pooled", shape=(*y.shape, 1, 1), sizes=(*y.sizes, 1, 1))
    return [AdaptiveAvgPool2d((x,), pooled, (1, 1)), Flatten((pooled,), y)]


def _activation(call: Call, a: dict[str, Any]) -> Recognised:
    activation = recognise_activation(call.target, a)
    if activation is None or not isinstance(a["self"], Value):
        return None
    return [Activate((a["self"],), call.output, activation)]


def _cat(call: Call, a: dict[str, Any]) -> Recognised:
    rank = len(call.output.shape)
    tensors = a["tensors"]
    if not all(isinstance(t, Value) and len(t.shape) == rank for t in tensors) or rank < 2:
        return None
    return [Concat(tuple(tensors), call.output, a["dim"] % rank)]


def _reshape(call: Call, a: dict[str, Any]) -> Recognised:
    x, y = a["self"], call.output
    if _is_image(x) and len(y.sizes) == 2 and x.sizes[0] == y.sizes[0] and isinstance(y.sizes[1], int):
        return [Flatten((x,), y)]
    return None


def _pair(x: int | Sequence[int]) -> Pair:
    if isinstance(x, int):
        return x, x
    return (int(x[0]), int(x[-1]))


def _is_image(x: Any) -> bool:
    return isinstance(x, Value) and len(x.shape) == 4 and isinstance(x.sizes[1], int)


def _are_tensors(*values: Value) -> bool:
    return all(v.dtype is not None for v in values)


def _is_float_constant(x: Any, rank: int) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float32 and x.dim() == rank


_RECOGNISERS: dict[Any, Callable[[Call, dict[str, Any]], Recognised]] = {
    aten.conv2d.default: _conv2d,
    aten.conv2d.padding: _conv2d,
    aten.convolution.default: _conv2d,
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.mm.default: _matmul,
    aten.matmul.default: _matmul,
    aten.batch_norm.default: _batch_norm,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _sub,
    aten.mul.Tensor: _mul,
    aten.div.Tensor: _div,
    aten.max_pool2d.default: _max_pool2d,
    aten.avg_pool2d.default: _avg_pool2d,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
    aten.mean.dim: _mean,
    aten.cat.default: _cat,
    aten.flatten.using_ints: _reshape,
    aten.reshape.default: _reshape,
}
