"""Pools and resizing from ONNX, against ONNX Runtime."""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("onnxruntime")

from onnx_models import assert_node, randn

from fggp.ship.network.description import UnsupportedError


@st.composite
def pools(draw, dilated):
    rank = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(5, 9), min_size=rank, max_size=rank))
    kernel = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    attributes = {"kernel_shape": kernel, "strides": draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))}
    padding = draw(st.sampled_from(["none", "pads", "SAME_UPPER", "SAME_LOWER"]))
    if padding == "pads":
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    elif padding != "none":
        attributes["auto_pad"] = padding
        # ONNX Runtime refuses strides that jump over pixels here.
        attributes["strides"] = [min(s, k) for s, k in zip(attributes["strides"], kernel, strict=True)]
    attributes["ceil_mode"] = draw(st.integers(0, 1)) if padding in ("none", "pads") else 0
    if dilated and padding == "none":
        attributes["dilations"] = draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    return (2, 3, *sizes), attributes


@settings(deadline=None)
@given(pools(True))
@example(((1, 1, 4, 4), {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1], "ceil_mode": 1}))
@example(((1, 1, 5), {"kernel_shape": [3], "strides": [3], "pads": [2, 2], "ceil_mode": 1}))
def test_max_pools(case):
    shape, attributes = case
    assert_node("MaxPool", {"x": randn(*shape)}, **attributes)


@settings(deadline=None)
@given(pools(False), st.integers(0, 1))
def test_average_pools(case, counted):
    shape, attributes = case
    assert_node("AveragePool", {"x": randn(*shape)}, count_include_pad=counted, **attributes)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (2, 3, 4, 5, 2)])
def test_global_pools(op, shape):
    assert_node(op, {"x": randn(*shape)})


def test_the_places_of_the_largest_numbers_are_refused():
    with pytest.raises(UnsupportedError, match="MaxPool in the node: its second result"):
        assert_node("MaxPool", {"x": randn(1, 1, 4, 4)}, outputs=2, kernel_shape=[2, 2])


NEAREST = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
PLACES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]


@settings(deadline=None)
@given(
    st.sampled_from(["nearest", "linear", "cubic"]),
    st.sampled_from(PLACES),
    st.sampled_from(NEAREST),
    st.sampled_from([(2.0, 3.0), (0.5, 1.5), (1.0, 2.0), "sizes"]),
    st.sampled_from([11, 13, 18]),
)
def test_resizing(mode, place, rounding, how, opset):
    # Which of two pixels is nearer then hangs on the last bit.
    assume(not (mode == "nearest" and place == "align_corners"))
    x = randn(1, 2, 6, 5)
    attributes = {"mode": mode, "coordinate_transformation_mode": place}
    if mode == "nearest":
        attributes["nearest_mode"] = rounding
    if how == "sizes":
        inputs = {"x": x, "roi": None, "scales": None, "sizes": np.array([1, 2, 9, 4])}
        if opset == 11:
            inputs["roi"], inputs["scales"] = np.zeros(0, np.float32), np.zeros(0, np.float32)
    else:
        roi = np.zeros(0, np.float32) if opset == 11 else None
        inputs = {"x": x, "roi": roi, "scales": np.array([1, 1, *how], np.float32)}
    constants = [name for name, given in inputs.items() if name != "x" and given is not None]
    assert_node("Resize", inputs, constants=constants, opset=opset, both=False, tolerance=1e-4, **attributes)


@pytest.mark.parametrize(
    ("mode", "place", "factor"),
    [
        ("nearest", "asymmetric", 2.0),
        ("nearest", "half_pixel", 2.0),
        ("linear", "half_pixel", 2.0),
        ("linear", "align_corners", 2.0),
        ("linear", "half_pixel", 1.5),
        ("cubic", "half_pixel", 2.0),
    ],
)
def test_resizing_of_free_sizes(mode, place, factor):
    inputs = {"x": randn(2, 2, 6, 5), "roi": None, "scales": np.array([1, 1, factor, factor], np.float32)}
    attributes = {"mode": mode, "coordinate_transformation_mode": place}
    if mode == "nearest":
        attributes["nearest_mode"] = "floor" if place == "asymmetric" else "round_prefer_floor"
    assert_node("Resize", inputs, constants=["scales"], tolerance=1e-4, **attributes)


def test_a_resizing_that_pytorch_lacks_needs_fixed_sizes():
    inputs = {"x": randn(2, 2, 6, 5), "roi": None, "scales": np.array([1, 1, 2, 2], np.float32)}
    with pytest.raises(UnsupportedError, match=r"Resize in the node: .*name them in `fixed`"):
        assert_node("Resize", inputs, constants=["scales"], mode="linear", coordinate_transformation_mode="asymmetric")


def test_old_upsampling():
    inputs = {"x": randn(1, 2, 3, 4), "scales": np.array([1, 1, 2, 3], np.float32)}
    assert_node("Upsample", inputs, constants=["scales"], opset=9, mode="nearest")
    assert_node("Upsample", inputs, constants=["scales"], opset=9, mode="linear", both=False)
