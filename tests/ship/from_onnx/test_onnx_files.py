"""Reading ONNX files: what they store and how, fixed values, conditions, free sizes, and what is refused."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

pytest.importorskip("onnxruntime")

from onnx_models import assert_close, assert_same, integers, model_of, randn

import fggp
from fggp.ship.network.description import UnsupportedError
from fggp.ship.onnx.operands import file_dtype
from networks import closing, load

node = helper.make_node


def test_a_saved_network_computes_the_same(tmp_path):
    model = model_of(node("Gemm", ["x", "w"], ["y"]), {"x": randn(3, 8)}, constants={"w": randn(8, 4)}, free=True)
    model.metadata_props.add(key="classes", value="a b")
    onnx.save(model, tmp_path / "model.onnx")
    net = fggp.from_onnx(tmp_path / "model.onnx")
    net.save(tmp_path / "net.fggp", metadata={"more": "text"})
    with closing(load(tmp_path / "net.fggp")) as loaded:
        found = loaded.run({"x": torch.from_numpy(randn(3, 8))}, 1)["y"]
        assert loaded.description["metadata"] == {"classes": "a b", "more": "text"}
    assert_close(found.numpy(), randn(3, 8) @ randn(8, 4))
    assert repr(net) == "<fggp.Imported (x: float32 [x_0, 8]) -> y: 1 operations, 32 weights, 0.0 % of them zero>"


def test_external_data(tmp_path):
    model = model_of(node("MatMul", ["x", "w"], ["y"]), {"x": randn(3, 64)}, constants={"w": randn(64, 64)})
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert_close(fggp.from_onnx(tmp_path / "m.onnx")(randn(3, 64)).numpy(), randn(3, 64) @ randn(64, 64), 1e-4)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises((ValueError, OSError), match=r"weights\.bin"):
        fggp.from_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize("linear", [False, True])
def test_sparse_initialisers(linear):
    weight = np.zeros((4, 3), np.float32)
    weight[1, 2], weight[3, 0] = 2, 5
    places = np.array([5, 9]) if linear else np.array([[1, 2], [3, 0]])
    values = onnx.numpy_helper.from_array(np.array([2, 5], np.float32), "w")
    sparse = helper.make_sparse_tensor(values, onnx.numpy_helper.from_array(places), [4, 3])
    model = model_of(node("MatMul", ["x", "w"], ["y"]), {"x": randn(2, 4)})
    model.graph.sparse_initializer.append(sparse)
    assert_close(fggp.from_onnx(model)(randn(2, 4)).numpy(), randn(2, 4) @ weight)


def test_half_precision_weights():
    half = randn(4, 3).astype(np.float16)
    nodes = [node("Cast", ["w"], ["f"], to=TensorProto.FLOAT), node("MatMul", ["x", "f"], ["y"])]
    assert_same(model_of(nodes, {"x": randn(2, 4)}, constants={"w": half}), {"x": randn(2, 4)})


@pytest.mark.parametrize("to", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_constants_that_are_cast(to):
    nodes = [
        node("Cast", ["w"], ["half"], to=to),
        node("Cast", ["half"], ["f"], to=TensorProto.FLOAT),
        node("MatMul", ["x", "f"], ["y"]),
    ]
    assert_same(model_of(nodes, {"x": randn(2, 4)}, constants={"w": randn(4, 3)}), {"x": randn(2, 4)})


def test_bfloat16_weights():
    weight = torch.from_numpy(randn(4, 3)).bfloat16()
    stored = helper.make_tensor("w", TensorProto.BFLOAT16, [4, 3], weight.view(torch.int16).numpy().tobytes(), raw=True)
    nodes = [node("Cast", ["w"], ["f"], to=TensorProto.FLOAT), node("MatMul", ["x", "f"], ["y"])]
    model = model_of(nodes, {"x": randn(2, 4)})
    model.graph.initializer.append(stored)
    assert_same(model, {"x": randn(2, 4)})


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float16, 2e-3), (np.float64, 2e-5)])
def test_other_floats_are_computed_in_float32(dtype, tolerance):
    inputs = {"x": randn(2, 4).astype(dtype), "z": randn(3, seed=1).astype(dtype)}
    nodes = [node("MatMul", ["x", "w"], ["xw"]), node("Add", ["xw", "z"], ["y"])]
    model = model_of(nodes, inputs, constants={"w": randn(4, 3).astype(dtype)})
    net = assert_same(model, inputs, tolerance=tolerance)
    assert [x.dtype for x in net.inputs] == [torch.float32] * 2


def test_weights_that_are_stored_rounded():
    nodes = [node("DequantizeLinear", ["w", "s", "z"], ["f"], axis=1), node("MatMul", ["x", "f"], ["y"])]
    constants = {"w": integers(4, 3).astype(np.int8), "s": np.abs(randn(3)), "z": np.array([0, 1, 2], np.int8)}
    net = assert_same(model_of(nodes, {"x": randn(2, 4)}, constants=constants), {"x": randn(2, 4)})
    assert "1 operations" in repr(net)


def test_functions_of_the_file():
    body = [node("Mul", ["a", "a"], ["b"]), node("LeakyRelu", ["b"], ["c"])]
    body[1].attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    function = helper.make_function("own", "F", ["a"], ["c"], body, [helper.make_opsetid("", 18)], ["slope"])
    model = model_of(node("F", ["x"], ["y"], domain="own", slope=0.5), {"x": randn(3)})
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    assert_same(model, {"x": randn(3)})


@pytest.mark.parametrize("negative", [0, 1])
def test_conditions_in_functions_of_the_file(negative):
    leaky = node("LeakyRelu", ["a"], ["t"])
    leaky.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    then = helper.make_graph([leaky], "then", [], [onnx.ValueInfoProto(name="t")])
    other = helper.make_graph([node("Neg", ["a"], ["e"])], "else", [], [onnx.ValueInfoProto(name="e")])
    flag = node("Constant", [], ["flag"])
    flag.attribute.append(onnx.AttributeProto(name="value_int", ref_attr_name="leaky", type=onnx.AttributeProto.INT))
    cast = node("Cast", ["flag"], ["c"], to=TensorProto.BOOL)
    body = [flag, cast, node("If", ["c"], ["b"], then_branch=then, else_branch=other)]
    opset = helper.make_opsetid("", 18)
    function = helper.make_function("own", "F", ["a"], ["b"], body, [opset], ["slope", "leaky"])
    model = model_of(node("F", ["x"], ["y"], domain="own", slope=0.5, leaky=1 - negative), {"x": randn(3)})
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    assert_same(model, {"x": randn(3)})


def branches(condition, inputs):
    then = helper.make_graph([node("Neg", ["x"], ["t"])], "then", [], [onnx.ValueInfoProto(name="t")])
    other = helper.make_graph([node("Abs", ["x"], ["e"])], "else", [], [onnx.ValueInfoProto(name="e")])
    choice = node("If", ["c"], ["y"], name="the choice", then_branch=then, else_branch=other)
    return model_of([*condition, choice], inputs, constants={"rate": np.array(16000)}, free={"x": ["N", 4]})


def test_conditions_on_inputs():
    model = branches([node("Equal", ["sr", "rate"], ["c"])], {"x": randn(2, 4), "sr": np.array(16000)})
    assert [x.name for x in fggp.from_onnx(model, fixed={"sr": 16000}).inputs] == ["x"]
    assert torch.equal(fggp.from_onnx(model, fixed={"sr": 16000})(randn(2, 4)), -torch.from_numpy(randn(2, 4)))
    assert torch.equal(fggp.from_onnx(model, fixed={"sr": 8000})(randn(2, 4)), torch.from_numpy(randn(2, 4)).abs())
    with pytest.raises(UnsupportedError, match="If in the choice: its condition depends on sr: give it a value"):
        fggp.from_onnx(model)


def test_conditions_on_sizes():
    condition = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "place"], ["size"]),
        node("Equal", ["size", "two"], ["c"]),
    ]
    for place, undecided in ((1, False), (0, True)):
        model = branches(condition, {"x": randn(2, 4)})
        for name, number in (("place", place), ("two", 2)):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(number), name))
        if undecided:
            with pytest.raises(UnsupportedError, match="its condition depends on N"):
                fggp.from_onnx(model)
        assert_same(model, {"x": randn(2, 4)}, fixed={"N": 2})


def test_shape_arithmetic_leaves_nothing_behind():
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["n"]),
        node("Gather", ["shape", "one"], ["s"]),
        node("Mul", ["n", "s"], ["ns"]),
        node("Unsqueeze", ["ns", "axis"], ["first"]),
        node("Concat", ["first", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {"zero": np.array(0), "one": np.array(1), "axis": np.array([0]), "rest": np.array([-1, 2])}
    model = model_of(nodes, {"x": randn(2, 3, 8)}, constants=constants, free={"x": ["batch", "seq", 8]})
    net = assert_same(model, {"x": randn(2, 3, 8)}, {"x": randn(5, 1, 8)})
    assert "1 operations" in repr(net)
    assert net.inputs[0].shape == ("batch", "seq", 8)


def sizes_of(*nodes, **constants):
    """A model of nodes that read `shape`, that of x, and compute y."""
    nodes = [node("Shape", ["x"], ["shape"]), *nodes, node("Identity", ["x"], ["same"])]
    return model_of(nodes, {"x": randn(3, 4)}, constants=constants, outputs=("y", "same"), free={"x": ["N", 4]})


def test_a_constant_is_looked_up_by_a_size():
    nodes = [
        node("Gather", ["shape", "zero"], ["n"]),
        node("Sub", ["n", "one"], ["last"]),
        node("Gather", ["table", "last"], ["y"]),
    ]
    model = sizes_of(*nodes, zero=np.array([0]), one=np.array([1]), table=randn(7))
    assert_same(model, {"x": randn(3, 4)}, {"x": randn(7, 4)})


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_sizes_are_flattened(axis):
    nodes = [node("Reshape", ["shape", "cube"], ["r"]), node("Flatten", ["r"], ["y"], axis=axis)]
    assert_same(sizes_of(*nodes, cube=np.array([1, 2, 1])), {"x": randn(3, 4)})


def test_operators_of_another_domain_are_not_taken_for_those_of_onnx():
    model = sizes_of(node("Add", ["shape", "shape"], ["y"], name="the sum", domain="my.own"))
    with pytest.raises(UnsupportedError, match=r"my\.own\.Add in the sum: fggp does not know this operator"):
        fggp.from_onnx(model)


def test_a_free_size_that_follows_from_another():
    nodes = [node("Concat", ["x", "h"], ["both"], axis=0), node("MatMul", ["both", "w"], ["y"])]
    inputs = {"x": randn(2, 64), "h": randn(3, 64, seed=1)}
    free = {"x": ["N", "D1"], "h": ["M", "D2"]}
    net = assert_same(model_of(nodes, inputs, constants={"w": randn(64, 5)}, free=free), inputs)
    assert [x.shape for x in net.inputs] == [("N", 64), ("M", 64)]


def test_names_of_sizes():
    names = {"x": ["p2o.DynamicDimension.0", 3, "?", "?"], "t": ["p2o.DynamicDimension.0", "seq len"]}
    nodes = [node("Relu", ["x"], ["y"]), node("Neg", ["t"], ["z"])]
    inputs = {"x": randn(1, 3, 4, 4), "t": integers(1, 5)}
    net = fggp.from_onnx(model_of(nodes, inputs, outputs=("y", "z"), free=names))
    assert [x.shape for x in net.inputs] == [("N", 3, "H", "W"), ("N", "S")]


def test_everything_that_is_not_supported_is_named():
    nodes = [
        node("NonZero", ["x"], ["a"], name="first"),
        node("Cast", ["a"], ["b"], name="between", to=TensorProto.FLOAT),
        node("MatMulInteger", ["a", "a"], ["c"], name="second"),
        node("Mine", ["x"], ["d"], name="third", domain="my.own"),
        node("Relu", ["x"], ["y"]),
    ]
    model = model_of(nodes, {"x": randn(2, 3)}, outputs=("y", "b", "c", "d"))
    with pytest.raises(UnsupportedError) as error:
        fggp.from_onnx(model)
    named = [(operator, place) for operator, place, _ in error.value.found]
    assert named == [("NonZero", "first"), ("MatMulInteger", "second"), ("my.own.Mine", "third")]


@pytest.mark.parametrize("name", TensorProto.DataType.keys())
def test_types_that_are_taken(name):
    taken = {
        torch.float32: ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"],
        torch.int64: ["INT64", "INT32", "INT16", "INT8", "UINT32", "UINT16", "UINT8"],
        torch.bool: ["BOOL"],
    }
    expected = [dtype for dtype, names in taken.items() if name in names]
    assert file_dtype(TensorProto.DataType.Value(name)) == (expected[0] if expected else None)


def test_sizes_of_fixed_inputs():
    nodes = [node("Relu", ["a"], ["b"]), node("Relu", ["c"], ["d"]), node("Relu", ["x"], ["y"])]
    inputs = {"a": randn(2, 2), "c": randn(2, 4), "x": randn(3)}
    model = model_of(nodes, inputs, outputs=("b", "d", "y"), free={"a": ["N", "N"], "c": ["N", "M"], "x": [3]})
    fixed = {"a": randn(2, 2), "c": randn(2, 4)}
    for more in ({}, {"N": 2}, {"N": 2, "M": 4}):
        assert_same(model, inputs, fixed={**fixed, **more})
    for wrong, message in (
        ({"a": randn(2, 3)}, r"fixed\['a'\] .* size N is 3; it must be 2, as that of fixed\['a'\] is"),
        ({"c": randn(3, 4)}, r"fixed\['c'\] .* size N is 3; it must be 2, as that of fixed\['a'\] is"),
        ({"N": 5}, r"fixed\['a'\] .* size N is 2; it must be 5, as fixed\['N'\] is"),
    ):
        with pytest.raises(ValueError, match=message):
            fggp.from_onnx(model, fixed={**fixed, **wrong})


def test_mistakes(tmp_path):
    model = model_of(node("Relu", ["x"], ["y"]), {"x": randn(2, 3)}, free={"x": ["N", 3]})
    with pytest.raises(ValueError, match="fixed has 'M'; the inputs and free sizes are N, x"):
        fggp.from_onnx(model, fixed={"M": 3})
    with pytest.raises(ValueError, match=r"fixed\['N'\] is 0; a size is a whole number of at least 1"):
        fggp.from_onnx(model, fixed={"N": 0})
    with pytest.raises(ValueError, match=r"fixed\['x'\] has the shape \[2\]; the input's is \['N', 3\]"):
        fggp.from_onnx(model, fixed={"x": randn(2)})
    with pytest.raises(ValueError, match=r"fixed\['x'\] is 'text'; the input is of type float32"):
        fggp.from_onnx(model, fixed={"x": "text"})
    for size in (True, "2", None, float("nan"), float("inf"), [2], 2.5, -1):
        with pytest.raises(ValueError, match=r"fixed\['N'\] is .*; a size is a whole number of at least 1"):
            fggp.from_onnx(model, fixed={"N": size})
    with pytest.raises(FileNotFoundError, match=r"nothing\.onnx is no file"):
        fggp.from_onnx(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("no ONNX at all")
    with pytest.raises(ValueError, match=r"text\.onnx is no ONNX file"):
        fggp.from_onnx(tmp_path / "text.onnx")
    net = fggp.from_onnx(model)
    with pytest.raises(TypeError, match="the input 'x' is missing, float32"):
        net()
    with pytest.raises(TypeError, match="has no input 'z'; its inputs are x"):
        net(randn(2, 3), z=1)
    with pytest.raises(ValueError, match=r'the input "x" is F32 \[2, 4\]; it must be F32 \[N, 3\]'):
        net(randn(2, 4))
