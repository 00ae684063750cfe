"""`fggp.quantize`: zeros stay, compiled results are the same to the bit, and close to the float network's."""

import copy

import pytest
import safetensors
import torch
from torch import nn

import fggp
from fggp.ship.graph.operations import Channels, Concat, Linear
from fggp.ship.graph.quantized import (
    Dequantize,
    Quantization,
    Quantize,
    QuantizedAdd,
    QuantizedConv2d,
    QuantizedLinear,
    QuantizedMean,
    dequantize,
    quantize,
)
from fggp.ship.quantize.ranges import Range, quantization_of
from fggp.ship.quantize.rewrite import quantized_weight


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Block(nn.Module):
    """A residual block, whose sum is fused into its second convolution."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.down = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + self.down(x)).relu()


class Residual(nn.Module):
    def __init__(self, activation=nn.ReLU):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), activation())
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 12, 2))
        self.last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))

    def forward(self, x):
        return self.last(self.blocks(self.first(x)))


class Branches(nn.Module):
    """Two branches side by side, a pool, and a depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.deep = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.end = nn.Linear(12 * 16, 5)

    def forward(self, x):
        y = self.pool(torch.cat([self.a(x).relu(), self.b(x)], 1))
        return self.end(self.deep(y).clamp(0, 6).flatten(1))


def prepared(model, sparsity=0.6, seed=0):
    """A model with norms as after training, and zeros in its weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(torch.rand(p.shape, generator=generator) >= sparsity)
    return model.eval()


def images(count, side=8, seed=1):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def kinds(quantized):
    return [type(op) for op in quantized.captured_graph.ops]


@pytest.mark.parametrize("calibration", ["mse", "minmax"])
@pytest.mark.parametrize("kind", ["residual", "silu", "branches"])
def test_compiled_to_the_bit_and_close_to_floats(kind, calibration):
    model = prepared({"residual": Residual, "silu": lambda: Residual(nn.SiLU), "branches": Branches}[kind]())
    quantized = fggp.quantize(model, [images(16), images(16, seed=2)], calibration=calibration)
    fast = fggp.compile(quantized, images(2))
    assert "PyTorch" not in repr(fast)
    for batch in (1, 3, 16, 35):
        x = images(batch, seed=3)
        with torch.no_grad():
            expected, exact = model(x), quantized(x)
        if kind != "silu":
            assert torch.equal(fast(x), exact)
        assert (fast(x) - expected).norm() <= 0.06 * expected.norm()


def test_whole_numbers_from_the_input_to_the_output():
    quantized = fggp.quantize(prepared(Residual()), [images(4)])
    found = kinds(quantized)
    assert found[0] is Quantize
    assert found.count(Quantize) == 2
    assert Dequantize not in found
    assert found.count(QuantizedConv2d) == 6
    assert found[-1] is QuantizedLinear
    assert QuantizedMean in found
    assert "7 of 7" in repr(quantized)


def test_a_sum_that_is_not_fused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in "abc")

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            return self.c(a + b), self.c(a) * b

    quantized = fggp.quantize(prepared(Twice()), [images(4)])
    assert QuantizedAdd in kinds(quantized)
    assert Dequantize in kinds(quantized)
    x = images(3)
    for a, b in zip(fggp.compile(quantized, x)(x), quantized(x), strict=True):
        assert torch.equal(a, b)


def test_a_layer_that_is_used_twice_has_one_weight():
    layer = nn.Linear(4, 4)
    quantized = fggp.quantize(nn.Sequential(layer, nn.ReLU(), layer), [torch.randn(8, 4)])
    first, second = (op for op in quantized.captured_graph.ops if isinstance(op, QuantizedLinear))
    assert first.weight is second.weight
    assert sum(x.dtype == torch.int8 for x in quantized.state_dict().values()) == 1


def test_zeros_stay_zeros():
    model = prepared(Residual())
    quantized = fggp.quantize(model, [images(4)])
    weights = dict(quantized.named_buffers())
    for name, p in model.named_parameters():
        if p.dim() > 1:
            assert weights[name].dtype == torch.int8
            assert not weights[name][p == 0].any()


def test_weights_are_rounded_to_nearest():
    weight = torch.randn(5, 7, 3, 3) * torch.tensor([1.0, 1e-3, 0.0, 1e3, 1e-6]).view(-1, 1, 1, 1)
    whole, scale = quantized_weight(weight)
    off = (whole * scale.view(-1, 1, 1, 1) - weight).abs().amax((1, 2, 3))
    assert (off <= 0.5001 * scale).all()
    assert whole.abs().amax((1, 2, 3)).tolist() == [127, 127, 0, 127, 127]


def test_ranges_have_zero():
    assert quantization_of(0.5, 2.55) == as_float32(2.55 / 255, 0)
    assert quantization_of(-2.55, -1.0) == as_float32(2.55 / 255, 255)
    assert quantization_of(0.0, 0.0) == as_float32(1.0, 0)
    assert quantization_of(-1.0, 1.0).zero in (127, 128)


def test_clipping_lowers_the_squared_error():
    x = torch.randn(1_000_000)
    x[:2] = torch.tensor([8.0, -8.0])
    own = Range()
    own.include(x)
    whole = own.quantization()
    own.count(x)
    clipped = own.quantization()
    errors = [(dequantize(quantize(x, q), q) - x).square().mean() for q in (whole, clipped)]
    assert errors[1] < 0.6 * errors[0]


def as_float32(scale, zero):
    return Quantization(float(torch.tensor(scale, dtype=torch.float32)), zero)


def test_excluded_layers_stay_floats():
    quantized = fggp.quantize(prepared(Residual()), [images(4)], exclude=["last.*", "blocks.0.conv?"])
    found = kinds(quantized)
    assert Linear in found
    assert found.count(QuantizedConv2d) == 4
    assert "float32: blocks.0.conv1, blocks.0.conv2, last.2" in repr(quantized)
    x = images(5)
    assert (fggp.compile(quantized, x)(x) - quantized(x)).norm() <= 1e-5 * quantized(x).norm()


def test_saved_and_loaded(tmp_path):
    quantized = fggp.quantize(prepared(Residual()), [images(4)])
    other = copy.deepcopy(quantized)
    for name, buffer in other.named_buffers():
        if name not in other.fixed_buffers:
            buffer.zero_()
    fggp.save(quantized, tmp_path / "small.safetensors")
    fggp.load(tmp_path / "small.safetensors", other)
    assert torch.equal(other(images(2)), quantized(images(2)))
    with pytest.raises(TypeError, match="stays on the CPU"):
        quantized.half()


def test_a_state_of_other_ranges_is_refused(tmp_path):
    model = prepared(Residual())
    quantized, other = fggp.quantize(model, [images(4)]), fggp.quantize(model, [10 * images(4)])
    before = copy.deepcopy(other.state_dict())
    fggp.save(quantized, tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"is of another model: '.*ranges' differs"):
        fggp.load(tmp_path / "small.safetensors", other)
    fggp.save(nn.Sequential(quantized), tmp_path / "inside.safetensors")
    with pytest.raises(ValueError, match=r"is of another model: '0\..*ranges' differs"):
        fggp.load(tmp_path / "inside.safetensors", nn.Sequential(other))
    with pytest.raises(RuntimeError, match=r"ranges' differs: .* Nothing was loaded"):
        other.load_state_dict(quantized.state_dict())
    with pytest.raises(RuntimeError, match=r"'0\."):
        nn.Sequential(other).load_state_dict(nn.Sequential(quantized).state_dict())
    assert all(torch.equal(x, before[name]) for name, x in other.state_dict().items())
    again = fggp.quantize(model, [images(4)])
    again.load_state_dict(quantized.state_dict())
    fggp.load(tmp_path / "small.safetensors", again)


def test_files_say_how_far_the_pruning_got(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = fggp.Pruner(model, optimizer, sparsity=0.5, begin=0, every=1, end=2)
    for _ in range(2):
        model(torch.randn(4, 8)).sum().backward()
        optimizer.step()
    assert pruner.finished
    quantized = copy.deepcopy(fggp.quantize(model, [torch.randn(4, 8)]))
    fggp.save(model, tmp_path / "model.safetensors")
    fggp.save(quantized, tmp_path / "quantized.safetensors")
    said = [
        {name: text for name, text in safetensors.safe_open(path, "pt").metadata().items() if "pruning" in name}
        for path in (tmp_path / "model.safetensors", tmp_path / "quantized.safetensors")
    ]
    assert said[0] == said[1]
    assert said[1]["pruning-step"] == "2 of 2"


def test_network_file(tmp_path):
    runtime = pytest.importorskip("fggp_runtime")
    quantized = fggp.quantize(prepared(Residual()), [images(4)])
    x = images(3)
    fast = fggp.compile(quantized, x)
    fast.save(tmp_path / "net.fggp")
    assert torch.equal(torch.from_numpy(runtime.load(tmp_path / "net.fggp")(x.numpy())), fast(x))


@pytest.mark.parametrize(
    ("arguments", "error", "why"),
    [
        ({"batches": []}, ValueError, "batches is empty"),
        ({"batches": torch.zeros(1)}, TypeError, r"batches is a tensor"),
        ({"calibration": "entropy"}, ValueError, "calibration='entropy'"),
        ({"exclude": "last.2"}, TypeError, "exclude="),
        ({"exclude": ["head"]}, ValueError, "'head' is the name of no"),
        ({"batches": [torch.full((1, 3, 8, 8), float("nan"))]}, ValueError, "not finite"),
        ({"batches": {"x": images(2)}}, TypeError, r"batches is a dict; .*: \[x\]"),
        ({"batches": 3}, TypeError, "batches=3 must be a sequence"),
        ({"batches": [3]}, TypeError, r"batches\[0\] is of type int"),
        ({"batches": [images(2), {"x": 3}]}, TypeError, r"batches\[1\]\['x'\] is of type int"),
        ({"batches": [[images(2), torch.zeros(2)]]}, TypeError, r"\[0\] has the arguments 2 positional, .*forward"),
        ({"batches": [images(2), {"images": images(2)}]}, TypeError, r"batches\[1\] has the arguments .*images"),
        ({"batches": [images(0)]}, ValueError, r"batches\[0\] has a tensor of the shape \[0, 3, 8, 8\]"),
        ({"batches": [images(2).to("meta")]}, ValueError, r"batches\[0\] is on meta"),
        ({"exclude": ["*"]}, ValueError, r"exclude=\['\*'\] names all"),
        (
            {"model": nn.Linear(3, 2).half(), "batches": [torch.ones(2, 3).half()]},
            TypeError,
            "weight' is torch.float16",
        ),
        ({"model": nn.Linear(3, 2).double(), "batches": [torch.ones(2, 3)]}, TypeError, "' is torch.float64"),
        ({"model": nn.ReLU()}, ValueError, "no convolution or linear layer"),
        ({"model": 3}, TypeError, "model=3"),
    ],
)
def test_wrong_arguments(arguments, error, why):
    with pytest.raises(error, match=why):
        fggp.quantize(**{"model": prepared(Residual()), "batches": [images(2)], **arguments})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(number):
    model = prepared(Residual())
    with torch.no_grad():
        model.blocks[1].conv1.weight[3, 2, 1, 0] = number
    with pytest.raises(ValueError, match=r"model: blocks.1.conv1 has a weight or a bias that is not finite"):
        fggp.quantize(model, [images(2)])


class OneSize(nn.Module):
    """Only batches of four."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.a(x) + torch.ones(4, 4, 1, 1).reshape(4, -1, 1, 1)


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (images(4).double(), r"is torch.float64 \(4, 3, 8, 8\) on cpu; it must be torch.float32"),
        (images(4)[:, :2], r"is torch.float32 \(4, 2, 8, 8\)"),
        (images(1), r"is torch.float32 \(1, 3, 8, 8\) on cpu; it must be torch.float32 \(4, 3, "),
    ],
)
def test_inputs_that_do_not_fit(x, why):
    model = OneSize()
    with pytest.raises(ValueError, match=rf"^batches\[1\] is not as batches\[0\]: input 'x' {why}"):
        fggp.quantize(model, [images(4), x])
    quantized = fggp.quantize(model, [images(4)])
    with pytest.raises(ValueError, match=f"^input 'x' {why}"):
        quantized(x)


class Inner(nn.Module):
    """Returns what is computed on the way, too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        y = self.a(x)
        z = self.pool(self.b(y).relu())
        return y, z, self.b(z)


def test_what_the_network_returns_is_not_rounded():
    quantized = fggp.quantize(prepared(Inner(), sparsity=0), [images(8)])
    x = images(8)
    assert len(quantized(x)[0].unique()) > 256
    assert Dequantize not in kinds(quantized)
    products = [op for op in quantized.captured_graph.ops if isinstance(op, QuantizedConv2d)]
    assert len(products) == 3
    assert products[0].to is None
    for ours, exact in zip(fggp.compile(quantized, x)(x), quantized(x), strict=True):
        assert torch.equal(ours, exact)


class Sounds(nn.Module):
    """Layers that have no int8, before one that has."""

    def __init__(self):
        super().__init__()
        self.a, self.up, self.memory = nn.Conv1d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2), nn.LSTM(3, 4, batch_first=True)
        self.end = nn.Linear(4, 2)

    def forward(self, x):
        y = self.up(self.a(x.flatten(2)).unsqueeze(2)).mean((2, 3))
        return self.end(y + self.memory(x.flatten(2).transpose(1, 2))[0].mean(1))


def test_layers_without_int8_are_named():
    model = prepared(Sounds(), sparsity=0)
    quantized = fggp.quantize(model, [images(2)])
    assert "1 of 4 convolutions, linear and recurrent layers in int8" in repr(quantized)
    assert "in float32: a, up, memory" in repr(quantized)
    assert repr(fggp.quantize(model, [images(2)], exclude=["a"])) == repr(quantized)
    with pytest.raises(ValueError, match=r"'b' is the name of no .* there are a, up, memory, end"):
        fggp.quantize(model, [images(2)], exclude=["b"])


class Uneven(nn.Module):
    """Large values beside small ones, which another layer reads too."""

    def __init__(self, layer, ratio, balanced=False):
        super().__init__()
        self.a, self.b, self.c, self.d = layer(3, 4), layer(3, 4), layer(8, 4), layer(4, 4)
        with torch.no_grad():
            self.a.weight.mul_(ratio)
            if balanced:
                self.c.weight[:, 4:].mul_(ratio)

    def forward(self, x):
        b = self.b(x)
        return self.c(torch.cat([self.a(x), b], 1)), self.d(b)


class Apart(Uneven):
    """Nothing else reads them."""

    def forward(self, x):
        return super().forward(x)[0]


def pointwise(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 1)


@pytest.mark.parametrize("layer", [nn.Linear, pointwise])
@pytest.mark.parametrize("ratio", [1, 8, 100])
def test_small_values_beside_large_ones(layer, ratio):
    model = prepared(Uneven(layer, ratio, balanced=ratio == 100), sparsity=0)
    x = images(64)
    x = x if layer is pointwise else x[:, :, 0, 0]
    quantized = fggp.quantize(model, [x])
    [join] = [op for op in quantized.captured_graph.ops if isinstance(op, (Concat, Channels))]
    assert join.output.dtype == (torch.uint8 if ratio == 1 and layer is nn.Linear else torch.float32)
    assert repr(quantized).partition("are zero")[2] == ("; in float32: c" if ratio == 100 else "")
    with torch.no_grad():
        for exact, expected in zip(quantized(x), model(x), strict=True):
            assert (exact - expected).norm() <= 0.03 * expected.norm()


def test_somewhat_smaller_values_that_only_a_concatenation_reads():
    quantized = fggp.quantize(prepared(Apart(nn.Linear, 8), sparsity=0), [torch.randn(64, 3)])
    [join] = [op for op in quantized.captured_graph.ops if isinstance(op, Concat)]
    assert join.output.dtype == torch.uint8
