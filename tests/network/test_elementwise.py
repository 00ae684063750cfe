"""Operators that compute number by number, against PyTorch."""

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.nn import functional as F

from networks import Refused, build, closing, run_one

INF, NAN = float("inf"), float("nan")
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 1e-30, -1e-30, 3e-30, 3e38, -3e38, INF, -INF, NAN]


def spread(low: float, high: float, count: int = 20_011) -> Tensor:
    """Numbers of all sizes from low to high, special ones, and neighbours of 0 and 1."""
    even = torch.linspace(low, high, count)
    small = torch.logspace(-36, 0, 1001) * max(abs(low), abs(high))
    return torch.cat([even, small, -small, 1 + torch.linspace(-1e-3, 1e-3, 501), torch.tensor(SPECIAL)])


def assert_rounded(found: Tensor, exact: Tensor, ulps: float = 2, tiny: float = 2.0**-126) -> None:
    """`found` is within some units in the last place of float64 numbers; NaN and infinity are where they must be.

    The library computes with zeros in place of denormal numbers, so results below `tiny` may be zero.
    """
    rounded = exact.float()
    assert torch.equal(found.isnan(), rounded.isnan())
    unit = torch.nextafter(rounded.abs(), torch.tensor(INF)) - rounded.abs()
    finite = rounded.isfinite()
    assert torch.equal(found[~finite & ~rounded.isnan()], rounded[~finite & ~rounded.isnan()])
    finite &= ~((found == 0) & (rounded.abs() < tiny))
    error = (found.double() - exact)[finite].abs() / unit.double()[finite]
    assert not error.numel() or error.max() <= ulps, (error.max(), found[finite][error.argmax()])


UNARY = {
    "neg": (torch.neg, spread(-3, 3)),
    "abs": (torch.abs, spread(-3, 3)),
    "exp": (torch.exp, spread(-110, 95)),
    "expm1": (torch.expm1, spread(-110, 95)),
    "log": (torch.log, spread(-1, 1e6)),
    "log1p": (torch.log1p, spread(-1.5, 100)),
    "sqrt": (torch.sqrt, spread(-1, 1e6)),
    "rsqrt": (torch.rsqrt, spread(-1, 1e6)),
    "reciprocal": (torch.reciprocal, spread(-100, 100)),
    "sin": (torch.sin, spread(-2e6, 2e6)),
    "cos": (torch.cos, spread(-100, 100)),
    "erf": (torch.erf, spread(-6, 6)),
    "floor": (torch.floor, spread(-10, 10)),
    "ceil": (torch.ceil, spread(-10, 10)),
    "round": (torch.round, spread(-10, 10, 41)),
    "sign": (torch.sign, spread(-10, 10)),
}


@pytest.mark.parametrize("function", UNARY)
def test_functions_of_one_number(function):
    expected, x = UNARY[function]
    assert_rounded(run_one("unary", [x], function=function), expected(x.double()))


def test_sines_of_large_numbers():
    x = torch.logspace(3, 38, 5000)
    assert_rounded(run_one("unary", [x], function="sin"), x.double().sin())
    assert_rounded(run_one("unary", [x], function="cos"), x.double().cos())


@pytest.mark.parametrize("function", ["neg", "abs", "sign"])
def test_functions_of_a_whole_number(function):
    x = torch.tensor([0, 1, -1, 5, -7, 2**62, -(2**63), 2**63 - 1])
    assert torch.equal(run_one("unary", [x], function=function), getattr(torch, function)(x))


def test_truths():
    x = torch.tensor([True, False, True])
    assert torch.equal(run_one("unary", [x], function="not"), ~x)
    y = torch.tensor(SPECIAL)
    assert torch.equal(run_one("unary", [y], function="isnan"), y.isnan())


BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
    "pow": torch.pow,
    "max": torch.maximum,
    "min": torch.minimum,
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "xor": torch.logical_xor,
}
LOGIC = ("and", "or", "xor")


def same(found: Tensor, expected: Tensor) -> bool:
    """Equal, where NaN equals NaN, and so do their signs of 0."""
    if not found.is_floating_point():
        return torch.equal(found, expected)
    number = ~expected.isnan()
    return torch.equal(found.isnan(), ~number) and torch.equal(
        found[number].view(torch.int32), expected[number].view(torch.int32)
    )


def remainder(a: Tensor, b: Tensor) -> Tensor:
    """The steps of PyTorch's remainder, one by one: where the quotient is huge, PyTorch's own vectors get it wrong."""
    found = []
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        rest = math.fmod(x, y) if math.isfinite(x) and y else NAN
        found.append(rest + y if rest and (rest < 0) != (y < 0) else rest)
    return torch.tensor(found)


def pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs."""
    return values.repeat_interleave(len(values)), values.repeat(len(values))


@pytest.mark.parametrize("function", [f for f in BINARY if f not in (*LOGIC, "pow")])
def test_functions_of_two_floats(function):
    values = torch.cat([torch.tensor(SPECIAL), torch.randn(40), torch.randn(20) * 1e6, torch.arange(-5.0, 6)])
    a, b = pairs(values)
    expected = (remainder if function == "mod" else BINARY[function])(a, b)
    if expected.is_floating_point():
        expected = torch.where(expected.abs() < 2.0**-126, 0 * expected, expected)  # denormal
    assert same(run_one("binary", [a, b], function=function), expected)


def test_the_remainders_are_those_of_pytorch():
    a, b = torch.randn(5000) * 100, torch.randn(5000)
    assert torch.equal(run_one("binary", [a, b], function="mod"), torch.remainder(a, b))


FLOATS = st.floats(width=32).filter(lambda x: not 0 < abs(x) < 1e-30)  # whose remainders may be denormal


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=40))
def test_remainders_of_any_floats(numbers):
    a, b = torch.tensor(numbers).unbind(1)
    assert same(run_one("binary", [a, b], function="floor_div"), torch.floor_divide(a, b))
    assert same(run_one("binary", [a, b], function="mod"), remainder(a, b))


def test_powers():
    values = torch.cat([torch.tensor(SPECIAL), torch.randn(60), torch.randn(20) * 10, torch.arange(-20.0, 21)])
    a, b = pairs(values)
    assert_rounded(run_one("binary", [a, b], function="pow"), a.double().pow(b.double()), 1)
    x = torch.randn(10_001) * 1e3
    assert torch.equal(run_one("binary", [x, torch.tensor(2.0)], function="pow"), x * x)
    whole = torch.arange(-255.0, 256)
    assert torch.equal(run_one("binary", [whole, torch.tensor(3.0)], function="pow"), whole**3)


@pytest.mark.parametrize("function", [f for f in BINARY if f not in LOGIC])
def test_functions_of_two_whole_numbers(function):
    values = torch.tensor([0, 1, -1, 2, -2, 3, 7, -7, 10, 63, 2**31, 2**62, -(2**63), 2**63 - 1])
    a, b = pairs(values)
    if function in ("floor_div", "mod"):
        kept = (b != 0) & (b != -1)
        a, b = a[kept], b[kept]
        x = torch.tensor([5, -(2**63)])
        found = run_one("binary", [x, torch.tensor(-1)], function=function)
        assert found.tolist() == ([-5, -(2**63)] if function == "floor_div" else [0, 0])
    elif function == "pow":
        kept = (b >= 0) | (a.abs() == 1)
        a, b = a[kept], b[kept]
    assert same(run_one("binary", [a, b], function=function), BINARY[function](a, b))


@pytest.mark.parametrize("function", [*LOGIC, "eq", "ne", "lt", "le", "gt", "ge", "max", "min", "add", "mul"])
def test_functions_of_two_truths(function):
    a, b = pairs(torch.tensor([False, True]))
    assert torch.equal(run_one("binary", [a, b], function=function), BINARY[function](a, b))


@pytest.mark.parametrize("function", ["floor_div", "mod"])
def test_a_division_of_whole_numbers_by_zero_fails(function):
    with pytest.raises(Refused, match=r"tested \(binary\): a whole number is divided by 0"):
        run_one("binary", [torch.arange(5), torch.tensor([1, 2, 0, 3, 4])], function=function)


SIZES = st.sampled_from([1, 1, 2, 3, 5, 17, 48, 300])


@st.composite
def broadcast_shapes(draw, count):
    """Shapes that can be broadcast, of up to about a million elements."""
    full = draw(st.lists(SIZES, max_size=5))
    while torch.Size(full).numel() > 400_000:
        full.pop()
    shapes = []
    for _ in range(count):
        shape = [size if draw(st.booleans()) else 1 for size in full]
        shapes.append(shape[draw(st.integers(0, len(shape))) :])
    return shapes


@given(broadcast_shapes(2), st.sampled_from(["sub", "lt"]), st.booleans(), st.sampled_from([1, 2]))
def test_broadcasts_of_two(shapes, function, whole, threads):
    a, b = (torch.randint(-9, 9, s) if whole else torch.randn(s) for s in shapes)
    assert torch.equal(run_one("binary", [a, b], function=function, threads=threads), BINARY[function](a, b))


@given(broadcast_shapes(3), st.sampled_from([torch.float32, torch.int64, torch.bool]), st.sampled_from([1, 2]))
def test_where(shapes, dtype, threads):
    condition = torch.rand(shapes[0]) < 0.5
    a, b = ((torch.randn(s) * 2).to(dtype) for s in shapes[1:])
    assert torch.equal(run_one("where", [condition, a, b], threads=threads), torch.where(condition, a, b))


@pytest.mark.parametrize("shape", [[0], [3, 0, 2]])
def test_tensors_without_elements(shape):
    x = torch.zeros(shape)
    assert run_one("binary", [x, torch.ones(1)], function="add").shape == x.shape
    assert run_one("unary", [x], function="exp").shape == x.shape
    assert run_one("activate", [x], activation=["gelu"]).shape == x.shape
    assert run_one("where", [x > 0, x, torch.tensor(1.0)]).shape == x.shape
    assert run_one("fill", [], shape=shape, value=1, type="F32").shape == x.shape


ACTIVATIONS = {
    "relu": (["clamp", 0, "inf"], torch.relu),
    "relu6": (["clamp", 0, 6], F.relu6),
    "leaky": (["leaky_relu", 0.1], lambda x: F.leaky_relu(x, 0.1)),
    "elu": (["elu", 1, 1, 1], F.elu),
    "hard_sigmoid": (["hard_sigmoid"], F.hardsigmoid),
    "hard_swish": (["hard_swish"], F.hardswish),
    "sigmoid": (["sigmoid"], torch.sigmoid),
    "silu": (["silu"], F.silu),
    "tanh": (["tanh"], torch.tanh),
    "gelu": (["gelu"], F.gelu),
    "gelu_tanh": (["gelu_tanh"], lambda x: F.gelu(x, approximate="tanh")),
    "mish": (["mish"], F.mish),
}
LAYOUTS = [(3, 5), (2, 3, 7, 7), (2, 5, 40, 40), (2, 3, 1, 1), (1, 4, 5)]


def close(found: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    activation, function = ACTIVATIONS[name]
    x, y = torch.randn(3, 1117) * 3, torch.randn(3, 1117)
    close(run_one("activate", [x], activation=activation), function(x.double()))
    close(run_one("add", [x, y], activation=activation), function(x.double() + y.double()))


@given(
    st.sampled_from(LAYOUTS), st.sampled_from(list(ACTIVATIONS)), st.booleans(), st.booleans(), st.sampled_from([1, 2])
)
def test_affine(shape, name, scaled, shifted, threads):
    activation, function = ACTIVATIONS[name]
    x, scale, shift = torch.randn(shape), torch.randn(shape[1]), torch.randn(shape[1])
    found = run_one(
        "affine", [x, scale if scaled else None, shift if shifted else None], threads=threads, activation=activation
    )
    view = [1, -1] + [1] * (len(shape) - 2)
    exact = x.double() * (scale.double().view(view) if scaled else 1) + (shift.double().view(view) if shifted else 0)
    close(found, function(exact))


def test_affine_inputs_may_be_missing():
    x = torch.randn(2, 3)
    assert torch.equal(run_one("affine", [x]), x)


@pytest.mark.parametrize("shape", [s for s in LAYOUTS if len(s) == 4])
def test_gate(shape):
    x, gate = torch.randn(shape), torch.rand(*shape[:2], 1, 1)
    assert torch.equal(run_one("gate", [x, gate], activation=["clamp", 0, "inf"]), torch.relu(x * gate))


def test_casts():
    floats = torch.tensor([0.0, -0.0, 1.9, -1.9, 1e10, -(2.0**63), NAN])
    wholes = torch.tensor([0, 1, -1, 2**62, 2**24 + 1, -(2**63)])
    truths = torch.tensor([True, False])
    for x in (floats, wholes, truths):
        for name, dtype in (("F32", torch.float32), ("I64", torch.int64), ("BOOL", torch.bool)):
            found = run_one("cast", [x], type=name)
            expected = x[:-1].to(dtype) if x is floats else x.to(dtype)  # PyTorch says nothing of NaN
            assert torch.equal(found[: len(expected)], expected)
    assert run_one("cast", [torch.tensor([NAN, INF, -INF, 2.0**63])], type="I64").tolist() == [-(2**63)] * 4
    assert run_one("cast", [torch.tensor([NAN])], type="BOOL").item()


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-7, 7).filter(bool), st.sampled_from(["F32", "I64"]))
def test_arange(start, stop, step, name):
    found = run_one("arange", [], start=start, stop=stop, step=step, type=name)
    assert found.tolist() == list(range(start, stop, step))
    assert found.dtype == {"F32": torch.float32, "I64": torch.int64}[name]


def test_sizes_that_depend_on_inputs():
    description = {
        "inputs": [{"name": "x", "type": "F32", "shape": ["N"]}],
        "nodes": [
            {"op": "arange", "in": [], "start": 1, "stop": ["+", "N", 1], "step": 1, "type": "I64"},
            {"op": "fill", "in": [], "shape": ["N", 2], "value": "-inf", "type": "F32"},
        ],
        "outputs": [{"name": "count", "value": 1}, {"name": "full", "value": 2}],
    }
    with closing(build(description)) as network:
        for size in (3, 5):
            found = network.run({"x": torch.zeros(size)})
            assert found["count"].tolist() == list(range(1, size + 1))
            assert torch.equal(found["full"], torch.full((size, 2), -INF))


def test_fill():
    assert torch.equal(run_one("fill", [], shape=[70_000], value=1.5, type="F32"), torch.full((70_000,), 1.5))
    assert run_one("fill", [], shape=[], value=2**62 + 1, type="I64").item() == 2**62 + 1
    assert run_one("fill", [], shape=[2], value=True, type="BOOL").tolist() == [True, True]
    assert run_one("fill", [], shape=[2], value=0, type="BOOL").tolist() == [False, False]


X, WHOLE, TRUTH = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool)
WRONG: list[tuple[str, list[Tensor | None], dict[str, Any], str]] = [
    ("unary", [X], {}, 'tested (unary): it has no "function"'),
    ("unary", [X], {"function": "hop"}, 'it has no function "hop"'),
    ("unary", [WHOLE], {"function": "exp"}, "its function exp is not for I64"),
    ("unary", [X, X], {"function": "exp"}, "it reads 1 tensor"),
    ("unary", [], {"function": "exp"}, "it reads 1 tensor"),
    ("binary", [X, None], {"function": "add"}, "it reads 2 tensors"),
    ("binary", [X, WHOLE], {"function": "add"}, "two tensors of one type, not F32 [2, 3] and I64 [2, 3]"),
    ("binary", [X, torch.zeros(2)], {"function": "add"}, "the shapes [2, 3] and [2] cannot be broadcast"),
    ("binary", [X, torch.zeros(0, 3)], {"function": "add"}, "the shapes [2, 3] and [0, 3] cannot be broadcast"),
    ("binary", [X, X], {"function": "and"}, "its function and is not for F32"),
    ("where", [X, X, X], {}, "its condition is F32 [2, 3], and must be BOOL"),
    ("where", [TRUTH, X, WHOLE], {}, "two tensors of one type"),
    ("where", [TRUTH, X, torch.zeros(4)], {}, "the shapes [2, 3], [2, 3] and [4] cannot be broadcast"),
    ("activate", [X], {}, 'it has no "activation"'),
    ("activate", [WHOLE], {"activation": ["tanh"]}, "its input is I64 [2, 3], and must be F32"),
    ("add", [X, torch.zeros(3)], {}, "its second input is F32 [3], and must be F32 [2, 3]"),
    ("gate", [X, X], {}, "it reads a tensor of 4 dimensions"),
    ("gate", [torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 1, 3)], {}, "its gate is F32 [1, 2, 1, 3]"),
    ("affine", [X, torch.zeros(2)], {}, "its scale is F32 [2], and must be F32 [3]"),
    ("affine", [X, None, torch.zeros(2)], {}, "its shift is F32 [2], and must be F32 [3]"),
    ("affine", [torch.zeros(3)], {}, "and must have 2 dimensions or more"),
    ("cast", [X], {"type": "F16"}, "the type F16 is not F32, I64, BOOL, U8 or I8"),
    ("fill", [], {"shape": [2], "value": 1.5, "type": "I64"}, '"value" is no whole number'),
    ("fill", [], {"shape": [2], "value": 2, "type": "BOOL"}, '"value" is 2; a BOOL is true or false'),
    ("fill", [], {"shape": [2**40], "value": 0, "type": "F32"}, "is too large"),
    ("fill", [], {"shape": [-1], "value": 0, "type": "F32"}, "cannot have the shape [-1]"),
    ("arange", [], {"start": 0, "stop": 5, "step": 0, "type": "I64"}, '"step" is 0'),
    ("arange", [], {"start": ["*", -(2**59), 12], "stop": 2**62, "step": 1, "type": "I64"}, "are too many"),
    ("arange", [], {"start": 0, "stop": 2**62, "step": 1, "type": "I64"}, "is too large"),
    ("arange", [], {"start": 0, "stop": 5, "step": 1, "type": "BOOL"}, "its type is F32 or I64"),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "message"), WRONG)
def test_what_is_wrong_is_named(op, inputs, attributes, message):
    with pytest.raises(Refused) as refused:
        run_one(op, inputs, **attributes)
    assert message in str(refused.value)
