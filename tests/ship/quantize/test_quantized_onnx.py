"""Quantised networks as ONNX: what the nodes hold, and that ONNX Runtime and OpenVINO compute what fggp computes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fggp
from fggp.lab.training.models import create
from fggp.ship.graph.interpret import steps
from fggp.ship.graph.onnx_file import ExportError
from fggp.ship.graph.quantized import QuantizedLinear, QuantizedProduct, dequantize
from models import randomised, vision, vit

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Shapes(nn.Module):
    """Most of what runs in int8: strides, groups, a sum of its own, a pool, a concatenation of vectors, a clamp."""

    def __init__(self):
        super().__init__()
        self.first, self.deep = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False)
        self.a, self.b, self.pool = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.MaxPool2d(2)
        self.up, self.down, self.end = nn.Linear(8, 6), nn.Linear(8, 6, bias=False), nn.Linear(12, 5)
        self.side = nn.Linear(8, 6)

    def forward(self, x):
        x = self.deep(self.first(x).clamp(-0.1, 0.3)).relu()
        x = self.pool(self.a(x) + self.b(x).relu())
        rows = x.flatten(2).transpose(1, 2)
        seen = torch.cat([self.up(x.mean((2, 3))), self.down(x.amax((2, 3)))], 1)
        return {"scores": self.end(seen), "rows": self.side(rows).relu()}


NETWORKS = {
    "shapes": (Shapes, 16),
    "resnet20": (lambda: create("resnet20", 10), 16),
    "mobilenet_v2": (lambda: vision("mobilenet_v2"), 32),
    "vit": (vit, 32),
}


def images(count, side, seed=1):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=NETWORKS)
def written(request, tmp_path_factory):
    """A quantised network, its file, and the side of its images."""
    torch.manual_seed(0)
    build, side = NETWORKS[request.param]
    model = randomised(build())
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(torch.rand(p.shape) >= 0.5)
    quantized = fggp.quantize(model, [images(16, side)])
    file = tmp_path_factory.mktemp("onnx") / "net.onnx"
    quantized.to_onnx(file)
    return quantized, file, side


def session_of(model):
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    data = model if isinstance(model, str) else model.SerializeToString()
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def flat(result):
    return list(result.values()) if isinstance(result, dict) else [result]


def test_onnx_runtime_computes_the_same(written):
    """Sums of products are exact in both. What follows rounds in another order, so a whole number here and there is the
    next one, which the layers after it pass on: much less than quantising costs.
    """
    quantized, file, side = written
    session = session_of(str(file))
    fast = fggp.compile(quantized, images(2, side))
    for batch in (1, 5):
        x = images(batch, side, seed=3)
        theirs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        for y, ours in zip(theirs, flat(fast(x)), strict=True):
            assert (torch.from_numpy(y) - ours).norm() <= 0.02 * ours.norm()


def test_openvino_computes_the_same(written):
    openvino = pytest.importorskip("openvino")
    quantized, file, side = written
    compiled = openvino.compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    x = images(5, side, seed=3)
    theirs = compiled(x.numpy())
    for i, ours in enumerate(flat(quantized(x))):
        assert (torch.from_numpy(theirs[i]) - ours).norm() <= 0.02 * ours.norm()


def test_whole_numbers_are_the_same_or_the_next(written):
    """Some are more than one off: layers add up what the layers before them passed on."""
    quantized, file, side = written
    model = onnx.load(file)
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    for node in nodes:
        model.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UINT8, None))
    session = session_of(model)
    x = images(3, side, seed=4)
    theirs = session.run([node.output[0] for node in nodes], {session.get_inputs()[0].name: x.numpy()})
    ours = [value for v, value in steps(quantized.captured_graph, [x]) if v.dtype == torch.uint8]
    assert len(ours) == len(theirs)
    apart = np.concatenate([np.abs(a.numpy().astype(int) - b).ravel() for a, b in zip(ours, theirs, strict=True)])
    assert (apart > 0).mean() <= 0.1
    assert (apart > 1).mean() <= 0.01


def test_weights_are_the_int8_of_the_network(written):
    quantized, file, _ = written
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    given = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    products = [op for op in quantized.captured_graph.ops if isinstance(op, QuantizedProduct)]
    assert len(given) == len(products)
    for node, op in zip(given, products, strict=True):
        weight, scale, zero = (stored[name] for name in node.input)
        linear = isinstance(op, QuantizedLinear)
        assert np.array_equal(weight.T if linear else weight, op.weight.numpy())
        assert weight.dtype == zero.dtype == np.int8
        assert not zero.any()
        assert onnx.helper.get_node_attr_value(node, "axis") == (1 if linear else 0)
        assert np.allclose(scale * op.of.scale, op.scale.numpy(), rtol=1e-6)


def test_a_rounding_differs_at_halves_only(tmp_path):
    """One layer, whose exact result is known."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    quantized = fggp.quantize(model, [images(8, 16)])
    quantized.to_onnx(tmp_path / "net.onnx")
    file = onnx.load(tmp_path / "net.onnx")
    node = [node for node in file.graph.node if node.op_type == "QuantizeLinear"][1]
    file.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UINT8, None))
    x = images(64, 16, seed=2)
    session = session_of(file)
    theirs = session.run([node.output[0]], {session.get_inputs()[0].name: x.numpy()})[0]
    values = dict(steps(quantized.captured_graph, [x]))
    op = next(op for op in quantized.captured_graph.ops if isinstance(op, QuantizedProduct))
    exact = nn.functional.conv2d(
        dequantize(values[op.inputs[0]], op.of).double() / op.of.scale, op.weight.double(), padding=1
    )
    exact = (exact * op.scale.double().view(-1, 1, 1) + op.bias.double().view(-1, 1, 1)) / op.to.scale
    differs = torch.from_numpy(theirs).int() != values[op.output].int()
    assert differs.sum() <= 1e-3 * differs.numel()
    assert (((exact[differs] % 1) - 0.5).abs() <= 1e-2).all()


class Bessel(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(torch.special.bessel_j0(self.a(x)))


def test_an_operator_without_onnx_is_named(tmp_path):
    quantized = fggp.quantize(Bessel(), [torch.randn(8, 4)])
    with pytest.raises(ExportError, match=r"cannot write this network as ONNX: .*bessel_j0"):
        quantized.to_onnx(tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_reading_such_files_is_refused_by_name(written):
    with pytest.raises(RuntimeError, match="QuantizeLinear"):
        fggp.from_onnx(written[1])


def test_missing_packages_are_named(tmp_path, monkeypatch):
    quantized = fggp.quantize(nn.Linear(4, 2), [torch.randn(8, 4)])
    monkeypatch.setattr("fggp.ship.quantize.network.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"to_onnx needs onnx, onnxscript: pip install 'fggp\[onnx\]'"):
        quantized.to_onnx(tmp_path / "net.onnx")


def test_the_block_in_the_documentation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[3] / "docs" / "int8.md"
    (block,) = (b for b in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S) if "to_onnx" in b)
    x = images(2, 16)
    quantized = fggp.quantize(randomised(create("resnet20", 10)), [x])
    names = {"quantized": quantized, "x": x}
    exec(block, names)
    assert names["y"].shape == (2, 10)
