"""Reductions, norms and recurrent layers from ONNX, against ONNX Runtime."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnxruntime")

from onnx_models import assert_node, integers, randn

from fggp.ship.network.description import UnsupportedError

REDUCTIONS = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"]


@settings(deadline=None)
@given(
    st.sampled_from(REDUCTIONS),
    st.sampled_from([None, [0], [1], [-1], [0, 2], [0, 1, 2]]),
    st.integers(0, 1),
    st.sampled_from([11, 18]),
)
def test_reductions(function, axes, keep, opset):
    x = np.abs(randn(3, 4, 5)) + 0.1
    as_input = opset == 18
    inputs = {"x": x, "axes": np.array(axes)} if as_input and axes is not None else {"x": x}
    given_axes = {"axes": axes} if not as_input and axes is not None else {}
    constants = ["axes"] if "axes" in inputs else []
    assert_node(f"Reduce{function}", inputs, constants=constants, opset=opset, keepdims=keep, **given_axes)


def test_a_reduction_of_nothing():
    assert_node("ReduceSum", {"x": randn(3, 4)}, opset=13, noop_with_empty_axes=1)
    assert_node("ReduceSum", {"x": integers(3, 4)}, opset=13)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
def test_places(op, last):
    x = integers(3, 8, low=0, high=3).astype(np.float32)
    assert_node(op, {"x": x}, axis=-1, select_last_index=last, opset=13)
    assert_node(op, {"x": x}, axis=0, keepdims=0, select_last_index=last, opset=13)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_sums(exclusive, reverse):
    inputs = {"x": randn(3, 4), "axis": np.array(1)}
    assert_node("CumSum", inputs, constants=["axis"], exclusive=exclusive, reverse=reverse)


@pytest.mark.parametrize("largest", [0, 1])
def test_sorting(largest):
    inputs = {"x": randn(3, 8), "k": np.array([3])}
    assert_node("TopK", inputs, constants=["k"], outputs=2, opset=11, largest=largest)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax(op):
    for axis in (0, 1, -1):
        assert_node(op, {"x": randn(2, 3, 4)}, opset=13, axis=axis)
        assert_node(op, {"x": randn(2, 3, 4)}, opset=11, axis=axis)
    assert_node(op, {"x": randn(2, 3, 4)}, opset=11)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 3, 4)])
def test_batch_norms(shape):
    statistics = {"mean": randn(3, seed=3), "var": np.abs(randn(3, seed=4)) + 0.1}
    inputs = {"x": randn(*shape), "scale": randn(3, seed=1), "b": randn(3, seed=2), **statistics}
    assert_node("BatchNormalization", inputs, constants=["scale", "b", "mean", "var"], epsilon=1e-3)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_norms(axis, bias):
    shape = (4,) if axis == -1 else (3, 4)
    inputs = {"x": randn(2, 3, 4), "scale": randn(*shape, seed=1)}
    if bias:
        inputs["b"] = randn(*shape, seed=2)
    constants = [name for name in inputs if name != "x"]
    assert_node("LayerNormalization", inputs, constants=constants, axis=axis, both=axis == -1)


def test_other_norms():
    x, scale, shift = randn(2, 6, 4, 5), randn(6, seed=1), randn(6, seed=2)
    inputs = {"x": x, "scale": scale, "b": shift}
    assert_node("InstanceNormalization", inputs, constants=["scale", "b"], both=False)
    assert_node("GroupNormalization", inputs, constants=["scale", "b"], both=False, opset=21, num_groups=3)
    grouped = {"x": x, "scale": scale[:3], "b": shift[:3]}
    assert_node("GroupNormalization", grouped, constants=["scale", "b"], both=False, opset=18, num_groups=3)
    assert_node("LRN", {"x": x}, size=3, alpha=0.1, beta=0.6, bias=1.5)
    for order in (1, 2):
        assert_node("LpNormalization", {"x": x * (randn(2, 1, 4, 5) > 0)}, p=order, axis=1)
    assert_node("MeanVarianceNormalization", {"x": x}, axes=[0, 2, 3], opset=13)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("states", [False, True])
def test_recurrent_layers(kind, direction, bias, states):
    gates, count = (4, 2) if kind == "LSTM" else (3, 1)
    d, hidden = 2 if direction == "bidirectional" else 1, 4
    inputs = {
        "x": randn(5, 2, 3),
        "w": randn(d, gates * hidden, 3, seed=1),
        "r": randn(d, gates * hidden, hidden, seed=2),
    }
    inputs["b"] = randn(d, 2 * gates * hidden, seed=3) if bias else None
    inputs["lengths"] = None
    for i in range(count if states else 0):
        inputs[f"state{i}"] = randn(d, 2, hidden, seed=4 + i)
    attributes = {"linear_before_reset": 1} if kind == "GRU" else {}
    constants = ["w", "r", *(["b"] if bias else [])]
    assert_node(
        kind, inputs, constants=constants, outputs=count + 1, hidden_size=hidden, direction=direction, **attributes
    )


def test_recurrent_layers_that_pytorch_lacks_are_named():
    inputs = {"x": randn(5, 2, 3), "w": randn(1, 12, 3), "r": randn(1, 12, 4)}
    with pytest.raises(UnsupportedError, match="GRU in the node: it has linear_before_reset=0"):
        assert_node("GRU", inputs, constants=["w", "r"], hidden_size=4)
