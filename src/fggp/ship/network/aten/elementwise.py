"""Operators that compute each number by itself: arithmetic, comparisons, activations, choices, casts."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch

from fggp.ship.graph.activations import recognise_activation
from fggp.ship.graph.calls import Call
from fggp.ship.network.aten.common import floats, number, operand, result_dtype, sizes_of
from fggp.ship.network.description import Inexpressible
from fggp.ship.network.nodes import Handler, Operand, Writer

aten = torch.ops.aten


def _numbers(w: Writer, call: Call, *given: Any, dtype: torch.dtype | None = None) -> list[Operand]:
    """Operands of one type, from tensors and numbers, as PyTorch promotes them.

    Args:
        w: where they are written.
        call: the operation that reads them.
        given: tensors and Python numbers.
        dtype: the type; None: that of the promotion.
    """
    found = [
        x if isinstance(x, (bool, int, float)) else w.number(x) if isinstance(x, str) else operand(w, x) for x in given
    ]
    if dtype is None:
        dtype = _promoted(found)
    return [w.cast(x, dtype) if isinstance(x, Operand) else w.scalar(x, dtype) for x in found]


def _promoted(given: list[Any]) -> torch.dtype:
    dtypes = [torch.empty((0,) * x.rank, dtype=x.dtype) if isinstance(x, Operand) else x for x in given]
    result: Any = dtypes[0]
    for x in dtypes[1:]:
        result = torch.empty((0,) * max(_rank(result), _rank(x)), dtype=torch.result_type(result, x))
    return result.dtype if isinstance(result, torch.Tensor) else torch.float32


def _rank(x: Any) -> int:
    return x.dim() if isinstance(x, torch.Tensor) else 0


def _arithmetic(function: str) -> Handler:
    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        dtype = result_dtype(call)
        x, y = _numbers(w, call, a["self"], a["other"], dtype=torch.int64 if dtype == torch.bool else dtype)
        if (alpha := number(a.get("alpha", 1), "alpha")) != 1:
            y = w.with_number("mul", y, alpha)
        return w.cast(w.binary(function, x, y), dtype)

    return write


def _reversed_subtraction(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    return _arithmetic("sub")(w, call, {**a, "self": a["other"], "other": a["self"]})  # type: ignore[return-value]


def _division(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    rounding, dtype = a.get("rounding_mode"), result_dtype(call)
    x, y = _numbers(w, call, a["self"], a["other"], dtype=dtype)
    if rounding is None:
        return w.binary("div", x, y)
    if rounding == "floor":
        return w.binary("floor_div", x, y)
    if dtype == torch.float32:
        return _truncated(w, w.binary("div", x, y))
    # The quotient rounded towards 0: of the absolute values, with the product's sign.
    sign = w.binary("mul", w.unary("sign", x), w.unary("sign", y))
    return w.binary("mul", sign, w.binary("floor_div", w.unary("abs", x), w.unary("abs", y)))


def _truncated(w: Writer, x: Operand) -> Operand:
    """Rounded towards 0."""
    if x.dtype != torch.float32:
        return x
    return w.node(
        "where",
        [w.binary("lt", x, w.scalar(0.0, x.dtype), torch.bool), w.unary("ceil", x), w.unary("floor", x)],
        x.dtype,
        x.sizes,
    )


def _floor_division(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    return _division(w, call, {**a, "rounding_mode": "floor"})


def _comparison(function: str) -> Handler:
    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        x, y = _numbers(w, call, a["self"], a["other"])
        if x.dtype == torch.bool:  # compared as 0 and 1
            x, y = w.cast(x, torch.int64), w.cast(y, torch.int64)
        return w.binary(function, x, y, torch.bool)

    return write


def _logical(function: str) -> Handler:
    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        x, y = (w.cast(operand(w, a[key]), torch.bool) for key in ("self", "other"))
        return w.binary(function, x, y)

    return write


def _bitwise(function: str) -> Handler:
    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        x, y = _numbers(w, call, a["self"], a["other"])
        if x.dtype != torch.bool:
            raise Inexpressible("the file has operations on bits of bool only")
        return w.binary(function, x, y)

    return write


def _logical_not(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    return w.unary("not", w.cast(operand(w, a["self"]), torch.bool))


def _bitwise_not(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = operand(w, a["self"])
    if x.dtype == torch.bool:
        return w.unary("not", x)
    return w.with_number("sub", w.unary("neg", x), 1)  # two's complement


def _unary(function: str) -> Handler:
    """A function of floats; of integers it takes their floats."""

    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        return w.unary(function, w.cast(operand(w, a["self"]), result_dtype(call)))

    return write


def _rounding(function: str) -> Handler:
    """A function that leaves integers as they are."""

    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        x = operand(w, a["self"])
        if a.get("decimals"):
            raise Inexpressible("it rounds to decimals")
        return w.unary(function, x) if x.dtype == torch.float32 else x

    return write


def _sign(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    return w.unary("sign", operand(w, a["self"]))


def _isinf(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = floats(w, a["self"])
    return w.binary("eq", w.unary("abs", x), w.scalar(math.inf, torch.float32), torch.bool)


def _isfinite(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = floats(w, a["self"])
    return w.binary("lt", w.unary("abs", x), w.scalar(math.inf, torch.float32), torch.bool)


def _nan_to_num(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = floats(w, a["self"])
    largest = torch.finfo(torch.float32).max
    nan, high, low = (
        default if a[key] is None else a[key]
        for key, default in (("nan", 0.0), ("posinf", largest), ("neginf", -largest))
    )
    numbers = x
    for place, replacement in (
        (w.unary("isnan", x), nan),
        (w.binary("eq", x, w.scalar(math.inf, x.dtype), torch.bool), high),
        (w.binary("eq", x, w.scalar(-math.inf, x.dtype), torch.bool), low),
    ):
        numbers = w.node("where", [place, w.scalar(replacement, x.dtype), numbers], x.dtype, x.sizes)
    return numbers


def _power(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, exponent = a["self"], a["exponent"]
    if not isinstance(exponent, (Operand, torch.Tensor)) and exponent == 2:
        (base,) = _numbers(w, call, x, dtype=result_dtype(call))
        return w.binary("mul", base, base)
    x, exponent = _numbers(w, call, x, exponent, dtype=result_dtype(call))
    return w.binary("pow", x, exponent)


def _square(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = operand(w, a["self"])
    return w.binary("mul", x, x)


def _trigonometric(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = w.cast(operand(w, a["self"]), torch.float32)
    return w.binary("div", w.unary("sin", x), w.unary("cos", x))


def _log_of_base(base: float) -> Handler:
    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        x = w.cast(operand(w, a["self"]), torch.float32)
        return w.with_number("div", w.unary("log", x), math.log(base))

    return write


def _power_of_two(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = w.cast(operand(w, a["self"]), torch.float32)
    return w.binary("pow", w.scalar(2.0, torch.float32), x)


def _product_of_quotient(operation: str) -> Handler:
    """addcmul and addcdiv: self + value · (tensor1 · or / tensor2)."""

    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        dtype = result_dtype(call)
        x, first, second = _numbers(w, call, a["self"], a["tensor1"], a["tensor2"], dtype=dtype)
        y = w.binary(operation, first, second)
        if (value := number(a["value"], "value")) != 1:
            y = w.with_number("mul", y, value)
        return w.binary("add", x, y)

    return write


def _lerp(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, end, weight = _numbers(w, call, a["self"], a["end"], a["weight"], dtype=torch.float32)
    return w.binary("add", x, w.binary("mul", weight, w.binary("sub", end, x)))


# Activations.


def _sigmoid(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    return w.activate(w.cast(operand(w, a["self"]), torch.float32), "sigmoid")


def _activation(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = w.cast(operand(w, a["self"]), result_dtype(call))
    activation = recognise_activation(call.target, {k: v for k, v in a.items() if k != "self"})
    if x.dtype == torch.float32 and activation is not None:
        return w.node("activate", [x], x.dtype, x.sizes, activation=activation)
    raise Inexpressible("the file has it with finite settings only, and for float32")


def _clamp(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    low, high = a.get("min", a.get("min_val")), a.get("max", a.get("max_val"))
    dtype = result_dtype(call)
    (x,) = _numbers(w, call, a["self"], dtype=dtype)
    for function, limit in (("max", low), ("min", high)):
        if limit is not None:
            (bound,) = _numbers(w, call, limit, dtype=dtype)
            x = w.binary(function, x, bound)
    return x


def _relu(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = operand(w, a["self"])
    return _activation(w, call, a) if x.dtype == torch.float32 else w.with_number("max", x, 0)


def _prelu(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, weight = floats(w, a["self"]), floats(w, a["weight"], "weight")
    weight = w.reshape(weight, (*weight.sizes, *[1] * (x.rank - 2)) if x.rank > 1 else weight.sizes)
    positive = w.with_number("max", x, 0.0)
    return w.binary("add", positive, w.binary("mul", weight, w.with_number("min", x, 0.0)))


def _softplus(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    """max(x, 0) + log1p(exp(−|x|)), which neither overflows nor cancels; x itself above the threshold."""
    x = floats(w, a["self"])
    beta, threshold = number(a["beta"], "beta"), number(a["threshold"], "threshold")
    scaled = x if beta == 1 else w.with_number("mul", x, beta)
    tail = w.unary("log1p", w.unary("exp", w.unary("neg", w.unary("abs", scaled))))
    y = w.binary("add", w.with_number("max", scaled, 0.0), tail)
    y = y if beta == 1 else w.with_number("div", y, beta)
    above = w.binary("gt", scaled, w.scalar(threshold, x.dtype), torch.bool)
    return w.node("where", [above, x, y], x.dtype, x.sizes)


def _log_sigmoid(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    """min(x, 0) − log1p(exp(−|x|))."""
    x = floats(w, a["self"])
    tail = w.unary("log1p", w.unary("exp", w.unary("neg", w.unary("abs", x))))
    return w.binary("sub", w.with_number("min", x, 0.0), tail)


def _softsign(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = floats(w, a["self"])
    return w.binary("div", x, w.with_number("add", w.unary("abs", x), 1.0))


def _threshold(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = operand(w, a["self"])
    # NaN is not at most the threshold, and is kept.
    below = w.binary("le", x, w.scalar(a["threshold"], x.dtype), torch.bool)
    return w.node("where", [below, w.scalar(a["value"], x.dtype), x], x.dtype, x.sizes)


def _shrink(hard: bool) -> Handler:
    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        x, width = floats(w, a["self"]), float(a["lambd"])
        inside = w.binary("le", w.unary("abs", x), w.scalar(width, x.dtype), torch.bool)
        moved = x if hard else w.binary("sub", x, w.with_number("mul", w.unary("sign", x), width))
        return w.node("where", [inside, w.scalar(0.0, x.dtype), moved], x.dtype, x.sizes)

    return write


def _glu(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = floats(w, a["self"])
    dim = a["dim"] % x.rank
    size = sizes_of(call)[dim]
    first, second = w.slice(x, dim, 0, size, size), w.slice(x, dim, size, x.sizes[dim], size)
    return w.binary("mul", first, w.activate(second, "sigmoid"))


# Choices and casts.


def _where(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    condition = w.cast(operand(w, a["condition"], "condition"), torch.bool)
    x, y = _numbers(w, call, a["self"], a["other"], dtype=result_dtype(call))
    return w.node("where", [condition, x, y], x.dtype, sizes_of(call))


def _masked_fill(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, mask = operand(w, a["self"]), operand(w, a["mask"], "mask")
    (value,) = _numbers(w, call, a["value"], dtype=x.dtype)
    return w.node("where", [mask, value, x], x.dtype, sizes_of(call))


def _cast(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    return w.cast(operand(w, a["self"]), result_dtype(call))


def _same(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    return operand(w, a["self"] if "self" in a else a["input"])


def _of_sizes(function: str) -> Handler:
    """Arithmetic of sizes that gives a float, as a tensor of rank 0."""

    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        numbers = _numbers(w, call, *a.values(), dtype=torch.float32)
        return w.binary(function, numbers[0], numbers[1]) if len(numbers) == 2 else numbers[0]

    return write


def _root_of_size(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    return w.unary("sqrt", _numbers(w, call, *a.values(), dtype=torch.float32)[0])


def _item(w: Writer, call: Call, a: dict[str, Any]) -> Any:
    raise Inexpressible("it reads a number out of a tensor: the shape of what follows may depend on the data")


def _overloads(names: str, handler: Handler, overloads: str = "Tensor Scalar default") -> dict[Any, Handler]:
    """All overloads of operators that this PyTorch has."""
    found: dict[Any, Handler] = {}
    for name in names.split():
        packet = getattr(aten, name, None)
        for overload in overloads.split():
            if packet is not None and overload in packet.overloads():
                found[getattr(packet, overload)] = handler
    return found


HANDLERS: dict[Any, Handler] = {
    **_overloads("add", _arithmetic("add")),
    **_overloads("sub subtract", _arithmetic("sub")),
    **_overloads("rsub", _reversed_subtraction),
    **_overloads("mul multiply", _arithmetic("mul")),
    **_overloads("div divide true_divide", _division, "Tensor Scalar Tensor_mode Scalar_mode"),
    **_overloads("floor_divide", _floor_division),
    **_overloads("remainder", _arithmetic("mod")),
    **_overloads("maximum max", _arithmetic("max"), "default other"),
    **_overloads("minimum min", _arithmetic("min"), "default other"),
    **_overloads("eq", _comparison("eq")),
    **_overloads("ne not_equal", _comparison("ne")),
    **_overloads("lt less", _comparison("lt")),
    **_overloads("le less_equal", _comparison("le")),
    **_overloads("gt greater", _comparison("gt")),
    **_overloads("ge greater_equal", _comparison("ge")),
    **_overloads("logical_and", _logical("and")),
    **_overloads("logical_or", _logical("or")),
    **_overloads("logical_xor", _logical("xor")),
    **_overloads("bitwise_and __and__", _bitwise("and")),
    **_overloads("bitwise_or __or__", _bitwise("or")),
    **_overloads("bitwise_xor __xor__", _bitwise("xor")),
    aten.logical_not.default: _logical_not,
    aten.bitwise_not.default: _bitwise_not,
    aten.neg.default: lambda w, call, a: w.unary("neg", operand(w, a["self"])),
    aten.abs.default: lambda w, call, a: w.unary("abs", operand(w, a["self"])),
    aten.sign.default: _sign,
    **{
        getattr(aten, name).default: _unary(name)
        for name in ["exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "erf"]
    },
    **_overloads("special_expm1", _unary("expm1")),
    **_overloads("special_log1p", _unary("log1p")),
    **_overloads("special_erf", _unary("erf")),
    **_overloads(
        "special_expit", lambda w, call, a: w.activate(w.cast(operand(w, a["self"]), torch.float32), "sigmoid")
    ),
    **{getattr(aten, name).default: _rounding(name) for name in ["floor", "ceil", "round"]},
    aten.trunc.default: lambda w, call, a: _truncated(w, operand(w, a["self"])),
    aten.isnan.default: lambda w, call, a: w.unary("isnan", floats(w, a["self"])),
    aten.isinf.default: _isinf,
    aten.isfinite.default: _isfinite,
    aten.nan_to_num.default: _nan_to_num,
    **_overloads("pow", _power, "Tensor_Scalar Tensor_Tensor Scalar"),
    aten.square.default: _square,
    aten.tan.default: _trigonometric,
    aten.log2.default: _log_of_base(2),
    aten.log10.default: _log_of_base(10),
    aten.exp2.default: _power_of_two,
    aten.addcmul.default: _product_of_quotient("mul"),
    aten.addcdiv.default: _product_of_quotient("div"),
    **_overloads("lerp", _lerp),
    **_overloads("relu6 leaky_relu elu selu celu hardsigmoid hardswish sigmoid silu tanh gelu mish", _activation),
    aten.relu.default: _relu,
    **_overloads("clamp clamp_min clamp_max clip hardtanh", _clamp),
    aten.prelu.default: _prelu,
    **_overloads("_prelu_kernel", _prelu),
    aten.softplus.default: _softplus,
    aten.log_sigmoid.default: _log_sigmoid,
    **_overloads("softsign", _softsign),
    aten.threshold.default: _threshold,
    aten.hardshrink.default: _shrink(hard=True),
    aten.softshrink.default: _shrink(hard=False),
    aten.glu.default: _glu,
    **_overloads("where", _where, "self ScalarSelf ScalarOther Scalar"),
    **_overloads("masked_fill", _masked_fill),
    **_overloads("to", _cast, "dtype dtype_layout device other"),
    aten._to_copy.default: _cast,
    **_overloads("type_as float", _cast, "default"),
    **_overloads(
        "contiguous clone alias detach lift_fresh lift_fresh_copy dropout feature_dropout alpha_dropout "
        "feature_alpha_dropout resolve_conj resolve_neg",
        _same,
    ),
    operator.truediv: _of_sizes("div"),
    operator.mul: _of_sizes("mul"),
    operator.add: _of_sizes("add"),
    operator.sub: _of_sizes("sub"),
    operator.pow: _of_sizes("pow"),
    torch.sym_float: _of_sizes("add"),
    torch.sym_sqrt: _root_of_size,
    aten.item.default: _item,
    aten._local_scalar_dense.default: _item,
}
