"""ONNX models of one or few nodes, and what fggp computes for them beside ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

import fggp

TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.bool_): TensorProto.BOOL,
}


def randn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def integers(*shape, low=-5, high=6, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape)


def model_of(nodes, inputs, *, constants=None, outputs=("y",), opset=18, free=False):
    """A model of nodes.

    Args:
        nodes: `onnx.NodeProto`, or one of them.
        inputs: an example of each input, by name.
        constants: arrays by name, which become initialisers.
        outputs: their names.
        opset: the version.
        free: whether the dimensions of the inputs are free sizes, each of its own name; or these names by input.
    """
    given = []
    for name, x in inputs.items():
        sizes = list(x.shape)
        if free is True:
            sizes = [f"{name}_{dim}" for dim in range(x.ndim)]
        elif free:
            sizes = free.get(name, sizes)
        given.append(helper.make_tensor_value_info(name, TYPES[x.dtype], sizes))
    graph = helper.make_graph(
        nodes if isinstance(nodes, list) else [nodes],
        "graph",
        given,
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(x), name) for name, x in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # As written: its fused operators round otherwise.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def assert_same(model, *examples, fixed=None, tolerance=2e-5):
    """fggp computes what ONNX Runtime does, for each example: inputs by name.

    Returns:
        The imported network.
    """
    net = fggp.from_onnx(model, fixed=fixed)
    runtime = session(model)
    for example in examples:
        expected = runtime.run(None, {**example, **{k: v for k, v in (fixed or {}).items() if not np.isscalar(v)}})
        ours = net(**{x.name: example[x.name] for x in net.inputs})
        ours = [ours] if torch.is_tensor(ours) else [ours[name] for name in net.outputs]
        for name, a, b in zip(net.outputs, ours, expected, strict=True):
            assert_close(a.numpy(), b, tolerance, name)
    return net


def assert_close(ours, expected, tolerance=2e-5, name="y"):
    assert ours.shape == expected.shape, name
    if expected.dtype.kind == "f":
        assert ours.dtype == np.float32, name
        # ONNX Runtime's sigmoid is off by 1e-7, also where it is next to nothing.
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=1e-2)
        np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance * scale, err_msg=name)
    else:
        assert ours.dtype == (np.bool_ if expected.dtype == np.bool_ else np.int64), name
        np.testing.assert_array_equal(ours, expected, err_msg=name)


def assert_node(
    op, inputs, *, constants=None, outputs=1, opset=18, tolerance=2e-5, both=True, fixed=None, **attributes
):
    """One node computes what it does in ONNX Runtime: with fixed sizes, and with free ones.

    Args:
        op: the operator.
        inputs: arrays by name, in the node's order; None for an input that is left out. Those in ``constants`` too.
        constants: the names of those inputs that are initialisers.
        outputs: how many.
        opset, tolerance: as elsewhere.
        both: whether to try free sizes, too.
        attributes: of the node.
    """
    names = ["" if x is None else name for name, x in inputs.items()]
    inputs = {name: None if x is None else np.asarray(x) for name, x in inputs.items()}
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, name="the node", **attributes)
    stored = {name: inputs[name] for name in constants or ()}
    given = {name: x for name, x in inputs.items() if x is not None and name not in stored}
    for free in (False, True) if both else (False,):
        model = model_of(node, given, constants=stored, outputs=results, opset=opset, free=free)
        assert_same(model, given, tolerance=tolerance)
