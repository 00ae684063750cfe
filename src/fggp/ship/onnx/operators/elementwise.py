"""Operators that compute each number by itself: arithmetic, comparisons, activations, choices, casts."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import onnx
import torch

from fggp.ship.network.description import Inexpressible
from fggp.ship.onnx.builder import Builder
from fggp.ship.onnx.nodes import Handler, Node, by_name
from fggp.ship.onnx.operands import Constant, Operand, Running

aten = torch.ops.aten


def _arithmetic(target: Any) -> Handler:
    """Of two or more inputs."""

    def write(b: Builder, n: Node) -> Operand:
        given = [n.input(i) for i in range(len(n.inputs))]
        return given[0] if len(given) == 1 else reduce(lambda x, y: b.pointwise(target, x, y), given)

    return write


def _mean(b: Builder, n: Node) -> Operand:
    total = _arithmetic(aten.add.Tensor)(b, n)
    assert isinstance(total, Running)
    return b.pointwise(aten.div.Tensor, total, float(len(n.inputs)))


def _division(b: Builder, n: Node) -> Operand:
    x, y = n.input(0), n.input(1)
    options = {} if x.dtype == torch.float32 else {"rounding_mode": "trunc"}
    return b.pointwise(aten.div.Tensor_mode if options else aten.div.Tensor, x, y, options=options)


def _remainder(b: Builder, n: Node) -> Operand:
    x, y = n.input(0), n.input(1)
    if not n.get("fmod", 0):
        return b.pointwise(aten.remainder.Tensor, x, y)
    # C's: the sign is that of x.
    whole = b.pointwise(aten.div.Tensor_mode, x, y, options={"rounding_mode": "trunc"})
    return b.pointwise(aten.sub.Tensor, x, b.pointwise(aten.mul.Tensor, whole, y))


def _power(b: Builder, n: Node) -> Operand:
    """The result has the type of the base."""
    x, y = n.input(0), n.input(1)
    if x.dtype == torch.int64 and _is_count(y):  # exact: float32 rounds results above 2 ** 24
        y = b.cast(y, torch.int64)
    if x.dtype == torch.int64 and y.dtype == torch.float32:
        return b.cast(_powered(b, b.cast(x, torch.float32), y), torch.int64)
    return _powered(b, x, b.cast(y, x.dtype))


def _is_count(y: Operand) -> bool:
    """Whether an exponent is a constant of whole numbers, none negative or so large that int64 would overflow."""
    if not isinstance(y, Constant) or y.dtype != torch.float32:
        return False
    return bool(((y.array >= 0) & (y.array < 64) & (y.array % 1 == 0)).all())


def _powered(b: Builder, x: Operand, y: Operand) -> Operand:
    if isinstance(y, Constant) and y.array.size == 1 and y.rank <= x.rank:
        exponent = y.array.reshape(-1)[0].item()
        if exponent == 0.5 and x.dtype == torch.float32:
            return b.pointwise(aten.sqrt.default, x)
        return b.pointwise(aten.pow.Tensor_Scalar, x, exponent)
    return b.pointwise(aten.pow.Tensor_Tensor, x, y)


def _comparison(target: Any) -> Handler:
    def write(b: Builder, n: Node) -> Operand:
        return b.pointwise(target, n.input(0), n.input(1), dtype=torch.bool)

    return write


def _of_bits(target: Any) -> Handler:
    def write(b: Builder, n: Node) -> Operand:
        n.refuse_unless(n.input(0).dtype == torch.bool, "the network file has operations on bits of bool only")
        return b.pointwise(target, *(n.input(i) for i in range(len(n.inputs))))

    return write


def _function(target: Any, dtype: torch.dtype | None = None) -> Handler:
    return lambda b, n: b.pointwise(target, n.input(0), dtype=dtype)


def _hyperbolic(sign: int) -> Handler:
    """sinh and cosh."""

    def write(b: Builder, n: Node) -> Operand:
        up = b.pointwise(aten.exp.default, n.floats(0))
        down = b.pointwise(aten.exp.default, b.pointwise(aten.neg.default, n.floats(0)))
        both = b.pointwise(aten.add.Tensor if sign > 0 else aten.sub.Tensor, up, down)
        return b.pointwise(aten.mul.Tensor, both, 0.5)

    return write


def _is_infinite(b: Builder, n: Node) -> Operand:
    x, positive, negative = n.floats(0), n.get("detect_positive", 1), n.get("detect_negative", 1)
    if positive and negative:
        return b.pointwise(aten.isinf.default, x, dtype=torch.bool)
    if positive or negative:
        return b.pointwise(aten.eq.Scalar, x, math.inf if positive else -math.inf, dtype=torch.bool)
    return b.filled(x.sizes, False, torch.bool)


# Activations.


def _leaky(b: Builder, n: Node) -> Operand:
    return b.pointwise(aten.leaky_relu.default, n.floats(0), n.get("alpha", 0.01))


def _elu(b: Builder, n: Node) -> Operand:
    return b.pointwise(aten.elu.default, n.floats(0), n.get("alpha", 1.0))


def _celu(b: Builder, n: Node) -> Operand:
    return b.pointwise(aten.celu.default, n.floats(0), n.get("alpha", 1.0))


def _selu(b: Builder, n: Node) -> Operand:
    alpha, gamma = n.get("alpha", 1.6732632423543772), n.get("gamma", 1.0507009873554805)
    return b.pointwise(aten.elu.default, n.floats(0), alpha, gamma)


def _gelu(b: Builder, n: Node) -> Operand:
    options = {"approximate": n.get("approximate", "none")}
    return b.pointwise(aten.gelu.default, n.floats(0), options=options)


def _hard_sigmoid(b: Builder, n: Node) -> Operand:
    x, alpha, beta = n.floats(0), n.get("alpha", 0.2), n.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return b.pointwise(aten.hardsigmoid.default, x)
    line = b.pointwise(aten.add.Tensor, b.pointwise(aten.mul.Tensor, x, alpha), beta)
    return b.pointwise(aten.clamp.default, line, 0.0, 1.0)


def _clip(b: Builder, n: Node) -> Operand:
    x = n.input(0)
    limits = [_limit(n, name, place) for place, name in ((1, "min"), (2, "max"))]
    if all(limit is None or isinstance(limit, (int, float)) for limit in limits):
        return x if limits == [None, None] else b.pointwise(aten.clamp.default, x, *limits)
    for limit, target in zip(limits, (aten.maximum.default, aten.minimum.default), strict=True):
        if limit is not None:
            x = b.pointwise(target, x, limit if not isinstance(limit, (int, float)) else Constant(_scalar(limit, x)))
    return x


def _limit(n: Node, name: str, place: int) -> Any:
    given = n.get(name, n.optional(place))
    return given.array.item() if isinstance(given, Constant) else given


def _scalar(number: float, like: Operand) -> Any:
    return torch.tensor(number, dtype=like.dtype).numpy()


def _prelu(b: Builder, n: Node) -> Operand:
    x, slope = n.floats(0), n.input(1)
    if isinstance(slope, Constant) and slope.array.size == 1:
        return b.pointwise(aten.leaky_relu.default, x, slope.array.item())
    above = b.pointwise(aten.clamp_min.default, x, 0.0)
    below = b.pointwise(aten.clamp_max.default, x, 0.0)
    return b.pointwise(aten.add.Tensor, above, b.pointwise(aten.mul.Tensor, below, slope))


def _swish(b: Builder, n: Node) -> Operand:
    x, alpha = n.floats(0), n.get("alpha", 1.0)
    if alpha == 1:
        return b.pointwise(aten.silu.default, x)
    gate = b.pointwise(aten.sigmoid.default, b.pointwise(aten.mul.Tensor, x, alpha))
    return b.pointwise(aten.mul.Tensor, x, gate)


def _softplus(b: Builder, n: Node) -> Operand:
    return b.pointwise(aten.softplus.default, n.floats(0), 1.0, math.inf)


def _softsign(b: Builder, n: Node) -> Operand:
    x = n.floats(0)
    below = b.pointwise(aten.add.Tensor, b.pointwise(aten.abs.default, x), 1.0)
    return b.pointwise(aten.div.Tensor, x, below)


def _thresholded(b: Builder, n: Node) -> Operand:
    x, alpha = n.floats(0), n.get("alpha", 1.0)
    above = b.pointwise(aten.gt.Scalar, x, alpha, dtype=torch.bool)
    return b.pointwise(aten.where.ScalarOther, above, x, 0.0, dtype=torch.float32)


def _shrink(b: Builder, n: Node) -> Operand:
    """x + bias below -lambd, x - bias above lambd, and 0 between."""
    x, bias, limit = n.floats(0), n.get("bias", 0.0), n.get("lambd", 0.5)
    moved = b.pointwise(aten.sub.Tensor, x, b.pointwise(aten.mul.Tensor, b.pointwise(aten.sign.default, x), bias))
    outside = b.pointwise(aten.gt.Scalar, b.pointwise(aten.abs.default, x), limit, dtype=torch.bool)
    return b.pointwise(aten.where.ScalarOther, outside, moved, 0.0, dtype=torch.float32)


# Choices and casts.


def where(b: Builder, condition: Operand, x: Operand, y: Operand) -> Running:
    """x where the condition holds, else y."""
    if not any(isinstance(v, Running) for v in (condition, x, y)):
        x = b.running(x)
    sizes = b.broadcast(condition.sizes, x.sizes, y.sizes)
    return b.call(aten.where.self, *map(b.argument, (condition, x, y)), sizes=sizes, dtype=x.dtype)


def _where(b: Builder, n: Node) -> Operand:
    return where(b, n.input(0), n.input(1), n.input(2))


_FLOATS = frozenset(["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"])
_WHOLE = frozenset(["INT64", "INT32"])


def _cast(b: Builder, n: Node) -> Operand:
    """Other floats are computed in float32, and int32 in int64."""
    name = onnx.TensorProto.DataType.Name(n.get("to", 0))
    x = n.input(0)
    if name == "BOOL" or (x.dtype == torch.bool and name in ("UINT8", "INT8")):
        return b.cast(x, torch.bool if name == "BOOL" else torch.int64)
    if name in _FLOATS or name in _WHOLE:
        return b.cast(x, torch.float32 if name in _FLOATS else torch.int64)
    raise Inexpressible(f"it casts to {name}, whose rounding or overflow the network file does not have")


def _cast_like(b: Builder, n: Node) -> Operand:
    return b.cast(n.input(0), n.input(1).dtype)


def _same(b: Builder, n: Node) -> Operand:
    return n.input(0)


def _dropout(b: Builder, n: Node) -> tuple[Operand | None, ...]:
    training = n.optional(2)
    if training is not None and not (isinstance(training, Constant) and not training.array.any()):
        raise Inexpressible("it is in training mode")
    return n.input(0), None


HANDLERS = by_name(
    {
        "Add Sum": _arithmetic(aten.add.Tensor),
        "Sub": _arithmetic(aten.sub.Tensor),
        "Mul": _arithmetic(aten.mul.Tensor),
        "Max": _arithmetic(aten.maximum.default),
        "Min": _arithmetic(aten.minimum.default),
        "Mean": _mean,
        "Div": _division,
        "Mod": _remainder,
        "Pow": _power,
        "Equal": _comparison(aten.eq.Tensor),
        "Less": _comparison(aten.lt.Tensor),
        "LessOrEqual": _comparison(aten.le.Tensor),
        "Greater": _comparison(aten.gt.Tensor),
        "GreaterOrEqual": _comparison(aten.ge.Tensor),
        "And": _of_bits(aten.logical_and.default),
        "Or": _of_bits(aten.logical_or.default),
        "Xor": _of_bits(aten.logical_xor.default),
        "Not": _function(aten.logical_not.default),
        "Neg": _function(aten.neg.default),
        "Abs": _function(aten.abs.default),
        "Sign": _function(aten.sign.default),
        "Exp": _function(aten.exp.default),
        "Log": _function(aten.log.default),
        "Sqrt": _function(aten.sqrt.default),
        "Reciprocal": _function(aten.reciprocal.default),
        "Sin": _function(aten.sin.default),
        "Cos": _function(aten.cos.default),
        "Tan": _function(aten.tan.default),
        "Sinh": _hyperbolic(-1),
        "Cosh": _hyperbolic(1),
        "Erf": _function(aten.erf.default),
        "Floor": _function(aten.floor.default),
        "Ceil": _function(aten.ceil.default),
        "Round": _function(aten.round.default),
        "IsNaN": _function(aten.isnan.default, torch.bool),
        "IsInf": _is_infinite,
        "Relu": _function(aten.relu.default),
        "Sigmoid": _function(aten.sigmoid.default),
        "Tanh": _function(aten.tanh.default),
        "HardSwish": _function(aten.hardswish.default),
        "Mish": _function(aten.mish.default),
        "Softsign": _softsign,
        "LeakyRelu": _leaky,
        "Elu": _elu,
        "Celu": _celu,
        "Selu": _selu,
        "Gelu": _gelu,
        "HardSigmoid": _hard_sigmoid,
        "Clip": _clip,
        "PRelu": _prelu,
        "Swish": _swish,
        "Softplus": _softplus,
        "ThresholdedRelu": _thresholded,
        "Shrink": _shrink,
        "Where": _where,
        "Cast": _cast,
        "CastLike": _cast_like,
        "Identity": _same,
        "Dropout": _dropout,
    }
)
