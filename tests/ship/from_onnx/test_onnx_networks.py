"""Whole networks from ONNX: as PyTorch's exporters write them, and as packages ship them."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from onnx_models import assert_close, assert_same, randn, session

import fggp


class UNet(nn.Module):
    """Convolutions, norms, pools, and two ways up."""

    def __init__(self):
        super().__init__()
        self.first, self.second = self.block(3, 4), self.block(4, 8)
        self.up, self.last = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 2, 1)

    @staticmethod
    def block(a, b):
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.GELU(), nn.GroupNorm(2, b), nn.SiLU())

    def forward(self, x):
        first = self.first(x)
        second = self.second(F.max_pool2d(first, 2))
        y = self.last(torch.cat([self.up(second), first], 1))
        return F.interpolate(y, scale_factor=2, mode="bilinear") + F.hardswish(y).mean((2, 3), keepdim=True)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 6, 2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(12, 5, batch_first=True)

    def forward(self, tokens):
        return self.gru(self.lstm(self.embedding(tokens))[0])[0]


class Transformer(nn.Module):
    """A block of BERT's, and causal attention."""

    def __init__(self):
        super().__init__()
        self.embedding, self.places = nn.Embedding(20, 16), nn.Embedding(32, 16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.norms = nn.ModuleList([nn.LayerNorm(16), nn.LayerNorm(16)])

    def forward(self, tokens):
        x = self.embedding(tokens) + self.places(torch.arange(tokens.shape[1])[None])
        q, k, v = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = self.norms[0](x + self.out(y))
        return self.norms[1](x + self.down(F.gelu(self.up(x), approximate="tanh")))


NETWORKS = {
    "unet": (UNet, torch.randn(2, 3, 8, 12), {0: "batch", 2: "height", 3: "width"}, (1, 3, 12, 20)),
    "recurrent": (Recurrent, torch.arange(14).reshape(2, 7), {0: "batch", 1: "length"}, (3, 5)),
    "transformer": (Transformer, torch.arange(14).reshape(2, 7), {0: "batch", 1: "length"}, (3, 9)),
}


@pytest.mark.filterwarnings("ignore")  # the exporters' own
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_networks(name, dynamo, tmp_path):
    make, x, free, other = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    file = tmp_path / "model.onnx"
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(torch.rand_like(p) > 0.5)
    how = {"dynamo": dynamo, "input_names": ["x"], "output_names": ["y"], "verbose": False}
    if dynamo:
        torch.onnx.export(
            model, (x,), str(file), dynamic_shapes=({d: torch.export.Dim(n) for d, n in free.items()},), **how
        )
    else:
        torch.onnx.export(model, (x,), str(file), dynamic_axes={"x": free}, **how)
    another = torch.randn(other) if x.is_floating_point() else torch.arange(np.prod(other)).reshape(other) % 20
    net = assert_same(onnx.load(file), {"x": x.numpy()}, {"x": another.numpy()}, tolerance=1e-4)
    assert [net.inputs[0].shape[dim] for dim in free] == list(free.values())


def packaged(package, file):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    (folder,) = find_spec(package).submodule_search_locations
    return onnx.load(Path(folder) / file)


def with_zeros(model, share=0.9):
    """A model whose large weights are mostly zero."""
    pruned = onnx.ModelProto()
    pruned.CopyFrom(model)
    constants = [a.t for n in pruned.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
    for tensor in [*pruned.graph.initializer, *constants]:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim > 1 and array.size > 500 and array.dtype.kind == "f":
            kept = np.abs(array) > np.quantile(np.abs(array), share)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array * kept, tensor.name))
    return pruned


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    ("file", "shapes"),
    [
        ("ch_PP-OCRv4_det_infer", [(1, 3, 64, 96), (2, 3, 96, 64)]),
        ("ch_PP-OCRv4_rec_infer", [(1, 3, 48, 96), (2, 3, 48, 120)]),
        ("ch_ppocr_mobile_v2.0_cls_infer", [(1, 3, 48, 192), (3, 3, 48, 100)]),
    ],
)
def test_networks_that_read_text(file, shapes, zeros, tmp_path):
    model = packaged("rapidocr_onnxruntime", f"models/{file}.onnx")
    model = with_zeros(model) if zeros else model
    net = assert_same(model, *({"x": randn(*shape)} for shape in shapes), tolerance=1e-4)
    assert net.inputs[0].shape == ("N", 3, "H", "W")
    net.save(tmp_path / "net.fggp")
    if zeros:
        assert (tmp_path / "net.fggp").stat().st_size < model.ByteSize() / 4


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    ("file", "fixed"),
    [
        ("silero_vad", {"sr": 16000, "S": 576}),
        ("silero_vad", {"sr": 8000, "S": 288}),
        ("silero_vad_16k_op15", {"sequence": 576}),
        ("silero_vad_16k_sequence", {}),
        ("silero_vad_half", {"sequence": 576}),
        ("silero_vad_op18_ifless", {"sr": 16000, "sequence": 576}),
        ("silero_vad_openvino_16k", {}),
    ],
)
def test_networks_that_hear_voices(file, fixed, zeros):
    model = packaged("silero_vad", f"data/{file}.onnx")
    model = with_zeros(model) if zeros else model
    net = fggp.from_onnx(model, fixed=fixed)
    length = fixed.get("S", fixed.get("sequence", 576))
    batch = 1 if file.endswith(("op15", "16k")) else 2
    shapes = {"input": (batch, length), "state": (2, batch, 128), "h": (1, 1, 128), "c": (1, 1, 128)}
    example = {x.name: randn(*shapes[x.name]) for x in net.inputs if x.name in shapes}
    example |= {x.name: np.array(16000) for x in net.inputs if x.name == "sr"}
    rates = {name: np.array(number) for name, number in fixed.items() if name == "sr"}
    expected = session(model).run(None, {**example, **rates})
    ours = net(**example)
    for name, b in zip(net.outputs, expected, strict=True):
        assert_close(ours[name].numpy(), b, 1e-4, name)
