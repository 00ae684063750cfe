"""Computing now what depends on constants and on the sizes of the inputs only."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import onnx
import sympy
import torch
from onnx.reference import ReferenceEvaluator

from fggp.ship.network.description import Inexpressible
from fggp.ship.onnx.nodes import Node
from fggp.ship.onnx.operands import (
    Constant,
    Operand,
    Symbolic,
    constant_array,
    file_dtype,
    numbers_of,
    symbolic,
    whole_numbers,
)
from fggp.ship.onnx.read import as_array
from fggp.ship.onnx.sizes import simplest

# A result is computed now if it has at most this number of elements, or no more than what it is computed from.
FOLDED_ELEMENTS_MAX = 1 << 20
# These are random, or the reference implementation takes long for them.
_RANDOM = ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"]
_LONG = ["Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "Resize", "Upsample"]
_NOT_FOLDED = frozenset([*_RANDOM, *_LONG, "Dropout"])


def folded(n: Node) -> tuple[Constant, ...] | None:
    """The results of a node that reads constants only, by ONNX's reference implementation.

    Returns:
        None if they are too long to be stored, or if the reference implementation does not compute them.
    """
    given = [x for x in n.inputs if x is not None]
    if n.proto.op_type in _NOT_FOLDED or not all(isinstance(x, Constant) for x in given):
        return None
    if n.proto.op_type in ("ConstantOfShape", "Expand", "Tile") and _announced(n) > FOLDED_ELEMENTS_MAX:
        return None
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(n.inputs)]
    outputs = [f"y{i}" if name else "" for i, name in enumerate(n.proto.output)]
    proto = onnx.NodeProto()
    proto.CopyFrom(n.proto)
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(outputs)
    graph = onnx.helper.make_graph(
        [proto],
        "node",
        [onnx.helper.make_tensor_value_info(name, 1, None) for name in names if name],
        [onnx.helper.make_tensor_value_info(name, 1, None) for name in outputs if name],
    )
    # The reference implementation has no older one of this.
    opset = max(n.opset, 19) if n.proto.op_type == "DequantizeLinear" else n.opset
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(n.proto.domain, opset)])
    arrays = {name: x.array for name, x in zip(names, n.inputs, strict=True) if isinstance(x, Constant)}
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results = ReferenceEvaluator(model).run(None, arrays)
    except Exception:  # what it lacks, or refuses, it says in many ways; then the network computes it
        return None
    made, read = sum(np.size(y) for y in results), sum(x.array.size for x in given if isinstance(x, Constant))
    if made > max(FOLDED_ELEMENTS_MAX, read):
        return None
    found = iter([Constant(as_array(np.asarray(y))) for y in results])
    return tuple(next(found) if name else None for name in outputs)  # type: ignore[misc]


def _announced(n: Node) -> int:
    """How many elements a constant shape asks for."""
    shape = n.inputs[1 if n.proto.op_type != "ConstantOfShape" else 0]
    numbers = [int(size) for size in shape.array.reshape(-1)] if isinstance(shape, Constant) else []
    base = n.inputs[0] if n.proto.op_type == "Tile" else None
    return int(np.prod(numbers, dtype=float)) * (base.array.size if isinstance(base, Constant) else 1)


# Sizes.


def computed_sizes(n: Node) -> Constant | Symbolic | None:
    """The result of a node that reads sizes and constants, as sizes; None if that is not possible."""
    given = [x for x in n.inputs if x is not None]
    rule = _RULES.get(n.proto.op_type)
    if rule is None or not given or not all(isinstance(x, (Constant, Symbolic)) for x in given):
        return None
    if sum(x.array.size for x in given if isinstance(x, (Constant, Symbolic))) > 4096:
        return None
    try:
        result = rule(n)
    except Inexpressible:  # it moves a constant by sizes, say; that the network does
        return None
    if result is None:
        return None
    array, dtype = result
    return symbolic(array, dtype)


def _array(x: Operand | None) -> Any:
    """The elements as sympy's numbers, so that the arithmetic is exact."""
    assert isinstance(x, (Constant, Symbolic))
    if isinstance(x, Symbolic):
        return x.array
    flat = [_exact(y) for y in x.array.reshape(-1)]
    return np.array([*flat, None], dtype=object)[:-1].reshape(x.array.shape)


def _exact(y: Any) -> Any:
    y = y.item()
    if isinstance(y, float):
        # 0.6 is meant as 6/10.
        return sympy.Rational(str(np.float32(y))) if np.isfinite(y) else sympy.sympify(y)
    return sympy.sympify(y)


Rule = Callable[[Node], "tuple[Any, torch.dtype] | None"]


def _moved(function: Callable[[Node, Any], Any]) -> Rule:
    """A rule that moves elements of the first input."""
    return lambda n: (function(n, _array(n.inputs[0])), n.input(0).dtype)


def _of_pairs(function: Callable[[Any, Any], Any]) -> Rule:
    def rule(n: Node) -> tuple[Any, torch.dtype]:
        return reduce(np.frompyfunc(function, 2, 1), map(_array, n.inputs)), n.input(0).dtype

    return rule


def _of_each(function: Callable[[Any], Any]) -> Rule:
    return lambda n: (np.frompyfunc(function, 1, 1)(_array(n.inputs[0])), n.input(0).dtype)


def _division(n: Node) -> Any:
    whole = n.input(0).dtype == torch.int64
    divide = np.frompyfunc(lambda a, b: _toward_zero(a / b) if whole else a / b, 2, 1)
    return divide(_array(n.inputs[0]), _array(n.inputs[1])), n.input(0).dtype


def _toward_zero(x: Any) -> Any:
    return sympy.ceiling(x) if x.is_negative else sympy.floor(x)


def _compared(relation: Any) -> Rule:
    """A comparison, if it holds for all sizes or for none."""

    def rule(n: Node) -> Any:
        found = np.frompyfunc(lambda a, b: _decided(relation, a, b), 2, 1)(_array(n.inputs[0]), _array(n.inputs[1]))
        if any(x is None for x in np.reshape(found, -1)):
            return None
        return found, torch.bool

    return rule


def _decided(relation: Any, a: Any, b: Any) -> Any:
    """Whether a relation holds, if free sizes do not decide it; else None."""
    bools = (sympy.true, sympy.false)
    result = relation(a, b) if a in bools else relation(a - b, 0)
    return result if result in bools else None


def _where(n: Node) -> Any:
    condition = n.input(0)
    if not isinstance(condition, Constant):
        return None
    chosen = np.frompyfunc(lambda c, a, b: a if c else b, 3, 1)
    return chosen(condition.array, _array(n.inputs[1]), _array(n.inputs[2])), n.input(1).dtype


# Sizes are taken to fit these.
_EXACT_TYPES = frozenset(map(onnx.TensorProto.DataType.Value, ("FLOAT", "DOUBLE", "FLOAT16", "INT64", "INT32")))


def _cast(n: Node) -> Any:
    to, x = n.get("to"), _array(n.inputs[0])
    if to not in _EXACT_TYPES or n.input(0).dtype == torch.bool:
        return None
    dtype = file_dtype(to)
    return (np.frompyfunc(_toward_zero, 1, 1)(x) if dtype == torch.int64 else x), dtype


def _slice(n: Node, x: Any) -> Any:
    starts, ends = (list(n.get(k) or whole_numbers(n.optional(i), k)) for i, k in ((1, "starts"), (2, "ends")))
    axes = n.axes(x.ndim, 3) or list(range(len(starts)))
    steps = [1] * len(starts) if n.optional(4) is None else whole_numbers(n.optional(4), "steps")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end < -x.shape[axis] else end
        x = x[(*[slice(None)] * axis, slice(start, stop, step))]
    return x


def _reshape(n: Node, x: Any) -> Any:
    shape = list(n.get("shape") or whole_numbers(n.optional(1), "shape"))
    return x.reshape([x.shape[i] if size == 0 and not n.get("allowzero", 0) else size for i, size in enumerate(shape)])


def _unsqueeze(n: Node, x: Any) -> Any:
    axes = n.get("axes") or whole_numbers(n.optional(1), "axes")
    return np.expand_dims(x, tuple(axes))


def _squeeze(n: Node, x: Any) -> Any:
    axes = n.axes(x.ndim)
    return np.squeeze(x, None if axes is None else tuple(axes))


def _concat(n: Node) -> Any:
    return np.concatenate([_array(x) for x in n.inputs], axis=n.get("axis", 0)), n.input(0).dtype


def _gather(n: Node, x: Any) -> Any:
    return np.take(x, constant_array(n.input(1), "index"), axis=n.get("axis", 0))


def _reduced(function: Any) -> Rule:
    def rule(n: Node) -> Any:
        x = _array(n.inputs[0])
        axes = n.axes(x.ndim)
        if axes not in (None, [0]) or x.ndim != 1 or not x.size:
            return None
        whole = reduce(function, x)
        return (np.array([whole], dtype=object) if n.get("keepdims", 1) else whole), n.input(0).dtype

    return rule


def _range(n: Node) -> Any:
    start, stop, step = (numbers_of(n.input(i), "range")[0] for i in range(3))
    count = simplest(sympy.ceiling((sympy.sympify(stop) - start) / step))
    if not isinstance(count, int) or n.input(0).dtype != torch.int64:
        return None
    return np.array([start + i * step for i in range(count)] or np.empty(0), dtype=object), torch.int64


def _remainder(a: Any, b: Any) -> Any:
    return a - b * sympy.floor(a / b)


_RULES: dict[str, Rule] = {
    "Identity": _moved(lambda n, x: x),
    "Gather": _moved(_gather),
    "Slice": _moved(_slice),
    "Reshape": _moved(_reshape),
    "Squeeze": _moved(_squeeze),
    "Unsqueeze": _moved(_unsqueeze),
    "Transpose": _moved(lambda n, x: np.transpose(x, n.get("perm"))),
    "Concat": _concat,
    "Cast": _cast,
    "Add": _of_pairs(operator.add),
    "Sub": _of_pairs(operator.sub),
    "Mul": _of_pairs(operator.mul),
    "Div": _division,
    "Mod": _of_pairs(_remainder),
    "Max": _of_pairs(sympy.Max),
    "Min": _of_pairs(sympy.Min),
    "Neg": _of_each(operator.neg),
    "Floor": _of_each(sympy.floor),
    "Ceil": _of_each(sympy.ceiling),
    "Equal": _compared(sympy.Eq),
    "Less": _compared(sympy.Lt),
    "LessOrEqual": _compared(sympy.Le),
    "Greater": _compared(sympy.Gt),
    "GreaterOrEqual": _compared(sympy.Ge),
    "Where": _where,
    "ReduceProd": _reduced(operator.mul),
    "ReduceSum": _reduced(operator.add),
    "ReduceMax": _reduced(sympy.Max),
    "ReduceMin": _reduced(sympy.Min),
    "Range": _range,
}
