"""Operators from ONNX that move and look up elements, against ONNX Runtime."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

pytest.importorskip("onnxruntime")

from onnx_models import assert_node, integers, randn

from fggp.ship.network.description import UnsupportedError

BOUNDS = st.one_of(st.integers(-9, 9), st.sampled_from([2**31 - 1, 2**63 - 1, -(2**31), -(2**63)]))


@settings(deadline=None)
@given(st.lists(st.tuples(BOUNDS, BOUNDS, st.sampled_from([1, 2, 3, -1, -2])), min_size=1, max_size=2))
def test_slices(parts):
    # Of what lies beyond the end, ONNX Runtime goes backwards to the front.
    assume(not any(end > 9 and step < 0 for _, end, step in parts))
    inputs = {"x": randn(6, 7)}
    starts, ends, steps = (np.array(numbers) for numbers in zip(*parts, strict=True))
    inputs |= {"starts": starts, "ends": ends, "axes": np.array([1, -2][: len(parts)]), "steps": steps}
    assert_node("Slice", inputs, constants=["starts", "ends", "axes", "steps"], both=False)


@pytest.mark.parametrize(
    ("start", "end", "step"),
    [
        (0, 3, 1),
        (1, 2**63 - 1, 1),
        (-2, 2**63 - 1, 1),
        (0, -1, 1),
        (1, -1, 2),
        (-1, -(2**63), -1),
        (-3, -1, 1),
        (2, 2**31 - 1, 2),
    ],
)
def test_slices_of_free_sizes(start, end, step):
    inputs = {"x": randn(6, 7)}
    inputs |= {name: np.array([x]) for name, x in (("s", start), ("e", end), ("a", 1), ("t", step))}
    assert_node("Slice", inputs, constants=["s", "e", "a", "t"])


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=6, max_size=6), st.sampled_from(["constant", "edge", "reflect"]), st.booleans()
)
def test_pads(pads, mode, old):
    x = randn(4, 5, 6)
    if old:
        assert_node("Pad", {"x": x}, opset=10, pads=pads, mode=mode, **({"value": 1.5} if mode == "constant" else {}))
        return
    inputs = {"x": x, "pads": np.array(pads)}
    if mode == "constant":
        inputs["value"] = np.float32(1.5)
    assert_node("Pad", inputs, constants=[name for name in inputs if name != "x"], mode=mode)


def test_pads_of_some_axes():
    inputs = {"x": randn(4, 5, 6), "pads": np.array([1, 2]), "value": None, "axes": np.array([-1])}
    assert_node("Pad", inputs, constants=["pads", "axes"])
    inputs = {"x": randn(4, 5), "pads": np.array([-1, 0, 2, -1])}
    assert_node("Pad", inputs, constants=["pads"])


@pytest.mark.parametrize("shape", [(6, 4), (-1,), (0, -1), (2, 0, 4), (4, -1, 2), (1, 2, 3, 4)])
def test_reshapes(shape):
    inputs = {"x": randn(2, 3, 4), "shape": np.array(shape)}
    assert_node("Reshape", inputs, constants=["shape"], both=-1 in shape)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, 3])
def test_flattening(axis):
    assert_node("Flatten", {"x": randn(2, 3, 4)}, axis=axis)


def test_dimensions_of_size_1():
    assert_node("Squeeze", {"x": randn(1, 3, 1)}, both=False)
    assert_node("Squeeze", {"x": randn(1, 3, 1), "axes": np.array([-1])}, constants=["axes"])
    assert_node("Squeeze", {"x": randn(1, 3, 1)}, opset=11, axes=[0, 2])
    assert_node("Unsqueeze", {"x": randn(2, 3), "axes": np.array([0, -1])}, constants=["axes"])
    assert_node("Unsqueeze", {"x": randn(2, 3)}, opset=11, axes=[1, 3])


def test_orders():
    assert_node("Transpose", {"x": randn(2, 3, 4)}, perm=[2, 0, 1])
    assert_node("Transpose", {"x": randn(2, 3, 4)})
    assert_node("Concat", {"a": randn(2, 3), "b": randn(2, 4, seed=1)}, axis=-1, both=False)
    assert_node("Concat", {"a": randn(2, 3), "b": randn(2, 3, seed=1)}, axis=0)
    for mode in ("DCR", "CRD"):
        assert_node("DepthToSpace", {"x": randn(2, 8, 3, 4)}, blocksize=2, mode=mode)
    assert_node("SpaceToDepth", {"x": randn(2, 3, 4, 6)}, blocksize=2)


def test_repeats():
    for shape in ((2, 3, 4), (5, 2, 3, 4), (1, 1)):
        inputs = {"x": randn(3, 1), "shape": np.array(shape)}
        assert_node("Expand", inputs, constants=["shape"], both=False)
    assert_node("Tile", {"x": randn(3, 2), "repeats": np.array([2, 3])}, constants=["repeats"])


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_splits(opset):
    parts = {"split": [2, 4]} if opset == 11 else {}
    inputs = {"x": randn(3, 6)}
    if opset > 11:
        inputs["split"] = np.array([2, 4])
    assert_node("Split", inputs, constants=[n for n in inputs if n != "x"], outputs=2, opset=opset, axis=-1, **parts)
    equal = {"num_outputs": 3} if opset == 18 else {}
    assert_node("Split", {"x": randn(3, 6)}, outputs=3, opset=opset, axis=1, **equal)


def test_uneven_splits():
    assert_node("Split", {"x": randn(7, 2)}, outputs=3, opset=18, num_outputs=3)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("index", [(), (1,), (4,), (2, 3)])
def test_gathering(axis, index):
    inputs = {"x": randn(3, 4, 5), "index": integers(*index, low=-3, high=3)}
    assert_node("Gather", inputs, constants=["index"], axis=axis)
    assert_node("Gather", inputs, axis=axis)
    assert_node("Gather", inputs, constants=["x"], axis=axis)


def test_gathering_elements():
    inputs = {"x": randn(3, 4), "index": integers(3, 2, low=-4, high=4)}
    assert_node("GatherElements", inputs, axis=1)
    assert_node("GatherElements", inputs, axis=1, constants=["index"])
    inputs = {"x": randn(3, 4, 5), "index": integers(6, 2, low=0, high=3)}
    assert_node("GatherND", inputs, both=False)
    assert_node("GatherND", inputs, constants=["index"])


def test_made_of_sizes():
    for upper in (0, 1):
        assert_node("Trilu", {"x": randn(4, 5)}, upper=upper)
        assert_node("Trilu", {"x": randn(2, 4, 5), "k": np.array(1)}, constants=["k"], upper=upper)
    assert_node("EyeLike", {"x": randn(4, 5)}, k=1)
    assert_node("EyeLike", {"x": integers(4, 5)})
    assert_node("EyeLike", {"x": integers(4, 5)}, dtype=TensorProto.FLOAT)
    with pytest.raises(UnsupportedError, match="it returns UINT4"):
        assert_node("EyeLike", {"x": integers(4, 5)}, dtype=TensorProto.UINT4)
    inputs = {"i": integers(4, low=-3, high=3), "depth": np.array(3), "values": np.array([0, 2], np.float32)}
    assert_node("OneHot", inputs, constants=["depth", "values"])
    assert_node("OneHot", inputs, constants=["depth", "values"], axis=0)
