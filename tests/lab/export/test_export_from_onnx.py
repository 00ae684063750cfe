"""`fggp export model.onnx`: the network file of an ONNX file."""

import numpy as np
import pytest
from rich.console import Console

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from fggp.lab.base.errors import UsageError  # noqa: E402
from fggp.lab.export.export import export  # noqa: E402
from fggp.lab.export.settings import ExportSettings  # noqa: E402
from networks import closing, load  # noqa: E402


@pytest.fixture
def file(tmp_path):
    """y = x W · rate, of which nine weights in ten are zero."""
    weight = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
    weight[np.abs(weight) < 1.65] = 0
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Mul", ["xw", "rate"], ["y"])]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64]),
        helper.make_tensor_value_info("rate", TensorProto.FLOAT, []),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])
    graph = helper.make_graph(nodes, "graph", inputs, [output], [onnx.numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_a_network_file_is_written_and_compared(file, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    made = export(ExportSettings(file, fix=("rate=0.5",)), Console(width=200))
    out = tmp_path / "model.fggp"
    assert made["bytes"] == {"onnx": file.stat().st_size, "network": out.stat().st_size}
    assert made["bytes"]["network"] < made["bytes"]["onnx"] / 4
    assert made["onnx_difference"] < 1e-5
    shown = capsys.readouterr().out
    for text in ("x: float32 [batch, 64]", "ONNX Runtime is off by", str(out)):
        assert text in shown
    with closing(load(out)) as network:
        assert [x["name"] for x in network.description["inputs"]] == ["x"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": ("small",)}, "from an ONNX file there is the network file only"),
        ({"model": "resnet20"}, "model is for state dicts and runs"),
        ({"fix": ("rate",)}, "fix is 'rate'; it must be a name and a number"),
        ({"fix": ("speed=2",)}, "fixed has 'speed'; the inputs and free sizes are batch, rate, x"),
    ],
)
def test_mistakes_in_options(file, options, message):
    with pytest.raises(UsageError, match=message):
        export(ExportSettings(file, **options), Console(quiet=True))
    assert not file.with_suffix(".fggp").exists()


def test_what_is_not_supported_is_said(file):
    model = onnx.load(file)
    model.graph.node[0].op_type = "Mine"
    onnx.save(model, file)
    with pytest.raises(UsageError, match="Mine in xw: fggp does not know this operator"):
        export(ExportSettings(file), Console(quiet=True))
