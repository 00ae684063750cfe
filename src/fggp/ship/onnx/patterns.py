"""Recognising what exporters spell out: activations, layer norms, biases after products."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fggp.ship.graph.calls import Call
from fggp.ship.graph.operations import Graph, Op, Value

aten = torch.ops.aten

_MUL, _DIV, _ADD, _SUB = aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor
_POW = aten.pow.Tensor_Scalar
# How far a constant of a file may be from a root that it stands for: √½ is often written with four digits.
_ROOT_TOLERANCE = 1e-4
_TOLERANCE = 1e-6  # and from another number: float32's rounding
_DEPTH = 8

Made = Mapping[Value, Op]


def with_known_functions(graph: Graph) -> Graph:
    """Replace spelled out functions by one call each. What only they have read is still in the graph."""
    uses = graph.uses()
    made: dict[Value, Op] = {}
    for op in graph.ops:
        found = op
        if isinstance(op, Call) and op.output.dtype == torch.float32:
            for rule in _RULES:
                found = rule(op, made, uses) or found
        made[op.output] = found
    return replace(graph, ops=tuple(made.values()))


def _call(made: Made, x: Any, *targets: Any) -> Call | None:
    """What computes a value, if it is a call of one of these."""
    op = made.get(x) if isinstance(x, Value) else None
    return op if isinstance(op, Call) and op.target in targets else None


def _number(x: Any) -> float | None:
    """A constant of one number."""
    if isinstance(x, Tensor) and x.numel() == 1:
        return float(x)
    return float(x) if isinstance(x, (int, float)) else None


def _is(x: float | None, number: float, tolerance: float = _TOLERANCE) -> bool:
    return x is not None and math.isclose(x, number, rel_tol=tolerance)


def _factors(made: Made, x: Any, depth: int = _DEPTH) -> tuple[float, Counter[Value]]:
    """A value as a number times values, some of which may be repeated."""
    if (number := _number(x)) is not None:
        return number, Counter()
    op = _call(made, x, _MUL, _DIV, _POW)
    if op is None or not depth:
        return 1.0, Counter([x] if isinstance(x, Value) else [])
    a, b = op.args[:2]
    if op.target is _MUL and not any(isinstance(y, Tensor) and y.numel() != 1 for y in (a, b)):
        (first, left), (second, right) = _factors(made, a, depth - 1), _factors(made, b, depth - 1)
        return first * second, left + right
    divisor = _number(b)
    if op.target is _DIV and divisor:
        number, values = _factors(made, a, depth - 1)
        return number / divisor, values
    if op.target is _POW and divisor in (2.0, 3.0):
        number, values = _factors(made, a, depth - 1)
        return number**divisor, Counter({v: count * int(divisor) for v, count in values.items()})
    return 1.0, Counter([x])


def _sum(made: Made, x: Any) -> tuple[Any, Any] | None:
    op = _call(made, x, _ADD)
    return None if op is None else (op.args[0], op.args[1])


def _more_than_one(made: Made, x: Any) -> Any:
    """y of y + 1; None if x is no such sum."""
    terms = _sum(made, x)
    for a, b in (terms, terms[::-1]) if terms else ():
        if _is(_number(b), 1.0):
            return a
    return None


# Activations: a product of x and a function of x.


def _activation(op: Call, made: Made, uses: Counter[Value]) -> Call | None:
    if op.target not in (_MUL, _DIV):
        return None
    a, b = op.args[:2]
    (first, left), (second, right) = _factors(made, a), _factors(made, b)
    if op.target is _DIV and (right or not second):
        return None
    number, values = first * second if op.target is _MUL else first / second, left + right
    if values.total() != 2 or len(values) != 2:
        return None
    for x, other in (tuple(values), tuple(values)[::-1]):
        if x.sizes == op.output.sizes and (found := _of(made, x, other, number)) is not None:
            target, options = found
            return Call.of(target, (x,), options, op.output)
    return None


def _of(made: Made, x: Value, other: Value, number: float) -> tuple[Any, dict[str, Any]] | None:
    """The activation that number · x · other is."""
    gate = _call(made, other, aten.sigmoid.default, aten.hardsigmoid.default, aten.tanh.default, aten.clamp.default)
    if gate is not None and _is(number, 1.0):
        inner = gate.args[0]
        if inner is x and gate.target is aten.sigmoid.default:
            return aten.silu.default, {}
        if inner is x and gate.target is aten.hardsigmoid.default:
            return aten.hardswish.default, {}
        soft = _call(made, inner, aten.softplus.default)
        if gate.target is aten.tanh.default and soft is not None and soft.args[0] is x:
            return aten.mish.default, {}
    if gate is not None and _is(number, 1 / 6) and gate.target is aten.clamp.default:
        terms = _sum(made, gate.args[0])
        shifted = terms is not None and terms[0] is x and _is(_number(terms[1]), 3.0)
        if shifted and [_number(limit) for limit in gate.args[1:3]] == [0.0, 6.0]:
            return aten.hardswish.default, {}
    inner = _more_than_one(made, other)
    if inner is None or not _is(number, 0.5):
        return None
    if (erf := _call(made, inner, aten.erf.default)) is not None:
        scale, values = _factors(made, erf.args[0])
        if _is(scale, math.sqrt(0.5), _ROOT_TOLERANCE) and values == Counter([x]):
            return aten.gelu.default, {"approximate": "none"}
    if (tanh := _call(made, inner, aten.tanh.default)) is not None and _is_tanh_of_gelu(made, x, tanh.args[0]):
        return aten.gelu.default, {"approximate": "tanh"}
    return None


def _is_tanh_of_gelu(made: Made, x: Value, inner: Any) -> bool:
    """Whether inner is √(2/π) (x + 0.044715 x³), or √(2/π) x (1 + 0.044715 x²)."""
    scale, values = _factors(made, inner)
    if not _is(scale, math.sqrt(2 / math.pi), _ROOT_TOLERANCE):
        return False
    rest = values - Counter([x])
    power = 3 if rest.total() == values.total() else 2
    if rest.total() != 1:
        return False
    (value,) = rest
    terms = _sum(made, value)
    for first, second in (terms, terms[::-1]) if terms else ():
        starts = first is x if power == 3 else _is(_number(first), 1.0)
        if starts and _is((cubic := _factors(made, second))[0], 0.044715) and cubic[1] == Counter({x: power}):
            return True
    return False


# Norms.


def _layer_norm(op: Call, made: Made, uses: Counter[Value]) -> Call | None:
    """(x − mean) / √(mean of (x − mean)² + ε), and x / √(mean of x² + ε)."""
    if op.target is _DIV:
        x, root = op.args[0], _call(made, op.args[1], aten.sqrt.default)
    elif op.target is _MUL:
        x, inverse = op.args[0], _call(made, op.args[1], aten.reciprocal.default)
        root = None if inverse is None else _call(made, inverse.args[0], aten.sqrt.default)
    else:
        return None
    terms = None if root is None else _sum(made, root.args[0])
    if terms is None or (epsilon := _number(terms[1])) is None or not isinstance(x, Value):
        return None
    variance = _call(made, terms[0], aten.mean.dim)
    if variance is None or _factors(made, variance.args[0]) != (1.0, Counter({x: 2})):
        return None
    dims = sorted(dim % len(x.shape) for dim in variance.args[1])
    if dims != list(range(len(x.shape) - len(dims), len(x.shape))) or not variance.args[2]:
        return None
    shape = list(x.sizes[dims[0] :])
    if any(isinstance(size, str) for size in shape):
        return None
    centred = _call(made, x, _SUB)
    mean = None if centred is None else _call(made, centred.args[1], aten.mean.dim)
    if centred is not None and mean is not None and mean.args[0] is centred.args[0]:
        same = sorted(dim % len(x.shape) for dim in mean.args[1]) == dims and mean.args[2]
        return (
            Call.of(aten.layer_norm.default, (mean.args[0], shape, None, None, epsilon), {}, op.output)
            if same
            else None
        )
    return Call.of(aten.rms_norm.default, (x, shape, None, epsilon), {}, op.output)


def _norm_weight(op: Call, made: Made, uses: Counter[Value]) -> Call | None:
    """The scale and the shift after a norm."""
    if op.target not in (_MUL, _ADD):
        return None
    for x, t in (op.args[:2], op.args[:2][::-1]):
        norm = _call(made, x, aten.layer_norm.default, aten.rms_norm.default)
        if norm is None or not isinstance(t, Tensor) or uses[x] != 1 or list(t.shape) != list(norm.args[1]):
            continue
        weight = norm.args[2]
        if op.target is _MUL and weight is None and (norm.target is aten.rms_norm.default or norm.args[3] is None):
            return Call.of(norm.target, (*norm.args[:2], t, *norm.args[3:]), {}, op.output)
        if op.target is _ADD and norm.target is aten.layer_norm.default and norm.args[3] is None:
            return Call.of(norm.target, (*norm.args[:3], t, *norm.args[4:]), {}, op.output)
    return None


def _bias(op: Call, made: Made, uses: Counter[Value]) -> Call | None:
    """x W + b as a linear layer."""
    if op.target is not _ADD:
        return None
    for x, bias in (op.args[:2], op.args[:2][::-1]):
        product = _call(made, x, aten.matmul.default)
        if product is None or uses[x] != 1 or not isinstance(bias, Tensor) or bias.dim() != 1:
            continue
        y, weight = product.args
        fits = isinstance(weight, Tensor) and weight.dim() == 2 and len(bias) == weight.shape[1]
        if fits and isinstance(y, Value) and len(y.shape) > 1:
            return Call.of(aten.linear.default, (y, weight.t(), bias), {}, op.output)
    return None


Rule = Callable[[Call, Made, "Counter[Value]"], "Call | None"]
_RULES: tuple[Rule, ...] = (_activation, _layer_norm, _norm_weight, _bias)
