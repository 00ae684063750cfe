"""Convolutions and products of matrices from ONNX, against ONNX Runtime."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("onnxruntime")

from onnx_models import assert_node, randn

from fggp.ship.network.description import UnsupportedError


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(5, 9), min_size=rank, max_size=rank))
    groups = draw(st.sampled_from([1, 2, 4]))
    attributes = {"group": groups}
    kernel = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    for name in ("strides", "dilations"):
        if draw(st.booleans()):
            attributes[name] = draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    padding = draw(st.sampled_from(["none", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if padding == "pads":
        attributes["pads"] = draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    elif padding != "none":
        attributes["auto_pad"] = padding
        if padding.startswith("SAME"):
            attributes.pop("dilations", None)
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    return (2, 4, *sizes), (8, 4 // groups, *kernel), draw(st.booleans()), attributes


@settings(deadline=None)
@given(convolutions())
def test_convolutions(case):
    shape, weight, bias, attributes = case
    inputs = {"x": randn(*shape), "w": randn(*weight, seed=1), "b": randn(8, seed=2) if bias else None}
    assert_node("Conv", inputs, constants=["w", "b"] if bias else ["w"], **attributes)


@st.composite
def transposed(draw):
    rank = draw(st.integers(1, 2))
    sizes = draw(st.lists(st.integers(3, 6), min_size=rank, max_size=rank))
    groups = draw(st.sampled_from([1, 2]))
    kernel = draw(st.lists(st.integers(2, 4), min_size=rank, max_size=rank))
    strides = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    attributes = {"group": groups, "strides": strides}
    if draw(st.booleans()):
        attributes["output_padding"] = [draw(st.integers(0, s - 1)) for s in strides]
    padding = draw(st.sampled_from(["none", "pads", "SAME_UPPER", "SAME_LOWER"]))
    if padding == "pads":
        attributes["pads"] = draw(st.lists(st.integers(0, 1), min_size=2 * rank, max_size=2 * rank))
    elif padding != "none":
        attributes["auto_pad"] = padding
        attributes.pop("output_padding", None)
        if any(k < s for k, s in zip(kernel, strides, strict=True)):
            attributes["strides"] = [min(k, s) for k, s in zip(kernel, strides, strict=True)]
    elif draw(st.booleans()):
        attributes["dilations"] = [2] * rank
    return (2, 4, *sizes), (4, 6 // groups, *kernel), draw(st.booleans()), attributes


@settings(deadline=None)
@given(transposed())
def test_transposed_convolutions(case):
    shape, weight, bias, attributes = case
    inputs = {"x": randn(*shape), "w": randn(*weight, seed=1), "b": randn(6, seed=2) if bias else None}
    assert_node("ConvTranspose", inputs, constants=["w", "b"] if bias else ["w"], **attributes)


def test_a_transposed_convolution_of_a_given_shape():
    inputs = {"x": randn(1, 2, 5, 5), "w": randn(2, 3, 3, 3)}
    for shape in ([11, 10], [9, 11]):
        assert_node("ConvTranspose", inputs, constants=["w"], both=False, strides=[2, 2], output_shape=shape)


@settings(deadline=None)
@given(
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 0.5]),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from([None, (), (1,), (5,), (1, 5), (3, 1), (3, 5)]),
    st.sampled_from(["constant", "weight", "none"]),
)
@example(False, True, 1.0, 1.0, (5,), "constant")
def test_general_products(trans_a, trans_b, alpha, beta, bias, constant):
    inputs = {
        "a": randn(4, 3) if trans_a else randn(3, 4),
        "b": randn(5, 4, seed=1) if trans_b else randn(4, 5, seed=1),
        "c": None if bias is None else randn(*bias, seed=2),
    }
    names = {"constant": ["b", "c"], "weight": ["b"], "none": []}[constant]
    names = [name for name in names if inputs[name] is not None]
    attributes = {"transA": int(trans_a), "transB": int(trans_b), "alpha": alpha, "beta": beta}
    assert_node("Gemm", inputs, constants=names, both=bias in (None, (5,), (3, 5)), **attributes)


@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (1, 1), (5, 5)])
def test_a_number_for_each_row_of_a_square_product(shape, beta):
    inputs = {"a": randn(5, 4), "b": randn(4, 5, seed=1), "c": randn(*shape, seed=2)}
    assert_node("Gemm", inputs, constants=["b", "c"], both=False, beta=beta)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((6, 1, 3, 4), (2, 4, 5)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((4,), (4,)),
        ((2, 3, 4), (4,)),
    ],
)
def test_products(a, b):
    inputs = {"a": randn(*a), "b": randn(*b, seed=1)}
    assert_node("MatMul", inputs, both=False)
    assert_node("MatMul", inputs, constants=["b"])
    assert_node("MatMul", inputs, constants=["a"])


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]), ("ij,jk", [(2, 3), (3, 4)]), ("bij->bj", [(2, 3, 4)])],
)
def test_einsum(equation, shapes):
    inputs = {f"x{i}": randn(*shape, seed=i) for i, shape in enumerate(shapes)}
    assert_node("Einsum", inputs, equation=equation)


def test_an_equation_with_an_ellipsis_is_named():
    with pytest.raises(UnsupportedError, match=r"Einsum in the node: its equation is '\.\.\.ij->i'"):
        assert_node("Einsum", {"x": np.zeros((2, 3, 4), np.float32)}, equation="...ij->i")
