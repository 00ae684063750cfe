"""Operators from ONNX that compute number by number, against ONNX Runtime."""

import numpy as np
import pytest
from onnx import TensorProto

pytest.importorskip("onnxruntime")

from onnx_models import assert_node, integers, randn

from fggp.ship.network.description import UnsupportedError

X = randn(2, 3, 4) * 3


FUNCTIONS = (
    *("Neg", "Abs", "Sign", "Exp", "Sqrt", "Sin", "Cos", "Tan", "Sinh", "Cosh", "Erf", "Floor", "Ceil", "Round", "Log"),
    *("Reciprocal", "IsNaN", "Identity", "Relu", "Sigmoid", "Tanh", "HardSwish", "Mish", "Softsign", "Softplus"),
    *("LeakyRelu", "Elu", "Celu", "Selu", "HardSigmoid", "ThresholdedRelu", "Shrink"),
)


@pytest.mark.parametrize("op", FUNCTIONS)
def test_functions(op):
    x = np.abs(X) + 0.1 if op in ("Sqrt", "Log") else X
    assert_node(op, {"x": x}, opset=18, tolerance=1e-5 if op != "Erf" else 1e-4)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("LeakyRelu", {"alpha": 0.3}),
        ("Elu", {"alpha": 0.5}),
        ("Celu", {"alpha": 2.0}),
        ("Selu", {"alpha": 1.5, "gamma": 0.9}),
        ("HardSigmoid", {"alpha": 0.1666667, "beta": 0.5}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.2}),
        ("ThresholdedRelu", {"alpha": 0.7}),
        ("Shrink", {"bias": 0.3, "lambd": 0.8}),
    ],
)
def test_settings(op, attributes):
    assert_node(op, {"x": X}, **attributes)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate):
    assert_node("Gelu", {"x": X}, opset=20, tolerance=1e-4, approximate=approximate)


@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("negative", [0, 1])
def test_infinities(positive, negative):
    x = np.array([1, np.inf, -np.inf, np.nan], np.float32)
    assert_node("IsInf", {"x": x}, detect_positive=positive, detect_negative=negative)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1), (3,)), ((2, 3), ()), ((), (2, 3))])
def test_arithmetic(op, shapes):
    a, b = (np.abs(randn(*shape, seed=i)) + 0.5 for i, shape in enumerate(shapes))
    free = all(1 not in shape for shape in shapes)
    assert_node(op, {"a": a, "b": b}, both=free)
    assert_node(op, {"a": a, "b": b}, constants=["b"], both=free)
    assert_node(op, {"a": a, "b": b}, constants=["a"], both=free)


@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
def test_several(op):
    assert_node(op, {"a": randn(2, 3), "b": randn(3, seed=1), "c": randn(2, 3, seed=2)})
    assert_node(op, {"a": randn(2, 3)})


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Mod"])
def test_whole_numbers(op):
    a, b = integers(4, 5), integers(4, 5, low=1, seed=1) * np.where(integers(4, 5, seed=2) > 0, 1, -1)
    assert_node(op, {"a": a, "b": b})


def test_remainders():
    a, b = integers(4, 5), integers(4, 5, low=1, seed=1) * np.where(integers(4, 5, seed=2) > 0, 1, -1)
    assert_node("Mod", {"a": a, "b": b}, fmod=1)
    assert_node("Mod", {"a": randn(4, 5), "b": randn(4, 5, seed=1)}, fmod=1)


@pytest.mark.parametrize("exponent", [2.0, 0.5, 3.0, -1.0])
def test_powers(exponent):
    inputs = {"x": np.abs(X) + 0.5, "e": np.float32(exponent)}
    assert_node("Pow", inputs, constants=["e"])
    assert_node("Pow", {**inputs, "e": np.array(exponent).astype(np.int64)}, constants=["e"])


@pytest.mark.parametrize("exponent", [0.5, 2.0, 1.5])
def test_powers_of_whole_numbers(exponent):
    inputs = {"x": np.array([0, 1, 4, 9, 50]), "e": np.float32(exponent)}
    assert_node("Pow", inputs, constants=["e"])
    assert_node("Pow", inputs, both=False)
    assert_node("Pow", {**inputs, "e": np.array([2, 3, 1, 2, 4])})


def test_squares_of_whole_numbers_beyond_float32():
    x = np.array([4099, -4099, 50_000_001])
    assert_node("Pow", {"x": x, "e": np.float32(2)}, constants=["e"])
    assert_node("Pow", {"x": x, "e": np.float32([2, 1, 0])}, constants=["e"], both=False)


@pytest.mark.parametrize("op", ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
def test_comparisons(op):
    assert_node(op, {"a": integers(4, 5), "b": integers(5, seed=1)})
    assert_node(op, {"a": randn(4, 5), "b": randn(5, seed=1)})
    assert_node(op, {"a": integers(4, 5), "b": np.array(2)}, constants=["b"])


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic(op):
    assert_node(op, {"a": integers(4, 5) > 0, "b": integers(5, seed=1) > 0})
    assert_node("Not", {"a": integers(4, 5) > 0})


def test_choices():
    assert_node("Where", {"c": integers(4, 5) > 0, "a": randn(5), "b": randn(4, 5, seed=1)})
    assert_node("Where", {"c": integers(4, 5) > 0, "a": np.float32(3), "b": randn(4, 5)}, constants=["a"])
    assert_node("Where", {"c": integers(4, 5) > 0, "a": integers(4, 5), "b": np.array(0)}, constants=["b"])


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (None, 0.5), (0.0, None), (None, None)])
def test_clipping(low, high):
    limits = {name: None if x is None else np.float32(x) for name, x in (("low", low), ("high", high))}
    assert_node("Clip", {"x": X, **limits}, constants=[name for name, x in limits.items() if x is not None])
    assert_node("Clip", {"x": X, **limits}, both=False)
    assert_node("Clip", {"x": X}, opset=6, **{k: v for k, v in (("min", low), ("max", high)) if v is not None})


@pytest.mark.parametrize("slope", [(1,), (3, 1, 1), (1, 1, 1)])
def test_prelu(slope):
    assert_node("PRelu", {"x": randn(2, 3, 4, 5), "slope": np.abs(randn(*slope))}, constants=["slope"])


@pytest.mark.parametrize("to", [TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL])
def test_casts(to):
    for x in (X, integers(2, 3), integers(2, 3) > 0, integers(2, 3).astype(np.int32)):
        assert_node("Cast", {"x": x}, to=to)


def test_a_cast_to_bytes_is_refused():
    with pytest.raises(UnsupportedError, match="Cast in the node: it casts to UINT8, whose rounding or overflow"):
        assert_node("Cast", {"x": X}, to=TensorProto.UINT8)
