"""Operations on whole numbers: the kernels, the plain loops and PyTorch's exact sums, bit for bit."""

import itertools
import json
import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from builds import build_name, every_build
from fggp.ship.graph.quantized import Quantization, dequantize, quantize
from networks import Refused, build, closing, library

BUILDS = [library()] if "FGGP_TEST_LIBRARY" in os.environ else every_build()
PLANS = [
    {"products": "operators"},
    {"tilings": "first", "memory": "separate"},
    {"tilings": "first", "lanes": "one"},
    {"tilings": "first", "lanes": "vector", "chains": "no"},
    {"tile": [2, 3, 1], "lanes": "vector", "memory": "separate"},
    {"tile": [1, 8, 2], "lanes": "vector"},
    {"tile": [4, 1, 1], "lanes": "one"},
    {"tilings": "first", "dot": "plain"},
]


class Whole:
    """A network of whole numbers that is built operation by operation, with what it computes."""

    def __init__(self, x, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.x, self.nodes, self.tensors, self.values = x, [], {}, [x]

    def random(self, low, high, shape):
        return torch.randint(low, high, shape, generator=self.generator)

    def quantization(self, scale=0.05):
        return Quantization(float(torch.tensor(scale)), int(self.random(0, 256, ())))

    def tensor(self, x):
        name = f"t{len(self.tensors)}"
        self.tensors[name] = x
        return name

    def add(self, op, read, result, **attributes):
        self.nodes.append({"op": op, "in": read, **{k: v for k, v in attributes.items() if v is not None}})
        self.values.append(result)
        return len(self.values) - 1

    def quantize(self, i, to):
        return self.add("quantize", [i], quantize(self.values[i], to), **named("", to))

    def dequantize(self, i, of):
        return self.add("dequantize", [i], dequantize(self.values[i], of), **named("", of))

    def product(self, i, of, outputs, density, *, kernel=None, to=None, residual=None, clamp=None, groups=1, **window):
        x = self.values[i]
        shape = (outputs, x.shape[-1]) if kernel is None else (outputs, x.shape[1] // groups, *kernel)
        weight = self.random(-128, 128, shape) * (torch.rand(shape, generator=self.generator) < density)
        scale = torch.rand(outputs, generator=self.generator) * 0.01
        bias = torch.randn(outputs, generator=self.generator) if outputs % 2 else None
        if kernel is None:
            total, channel = F.linear(x.double() - of.zero, weight.double()), (-1,)
        else:
            conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
            total = conv(x.double() - of.zero, weight.double(), None, groups=groups, **window)
            channel = (-1, *[1] * len(kernel))
        y = total.float() * scale.view(channel) + (0 if bias is None else bias.view(channel))
        read, more = [i, self.tensor(weight.to(torch.int8)), None if bias is None else self.tensor(bias), None], {}
        if residual is not None:
            read[3], of_residual = residual
            y = y + dequantize(self.values[read[3]], of_residual)
            more = named("residual_", of_residual)
        if clamp is not None:
            y = y.clamp(*clamp)
            more["activation"] = ["clamp", clamp[0], "inf" if clamp[1] == float("inf") else clamp[1]]
        if to is not None:
            y = quantize(y, to)
            more |= named("out_", to)
        if kernel is not None:
            more |= {"groups": groups, **window}
        read.append(self.tensor(scale))
        op = "quantized_linear" if kernel is None else "quantized_conv"
        return self.add(op, read, y, **named("", of), **more)

    def sum(self, i, j, a, b, to, clamp=None):
        y = dequantize(self.values[i], a) + dequantize(self.values[j], b)
        y = quantize(y if clamp is None else y.clamp(*clamp), to)
        given = {**named("a_", a), **named("b_", b), **named("out_", to)}
        return self.add("quantized_add", [i, j], y, activation=clamp and ["clamp", *clamp], **given)

    def mean(self, i, of):
        x = self.values[i]
        total = (x.long() - of.zero).flatten(2).sum(2).float()
        y = total * (torch.tensor(of.scale) / torch.tensor(float(x[0, 0].numel())))
        return self.add("quantized_mean", [i], y.view(*x.shape[:2], *[1] * (x.dim() - 2)), **named("", of))

    def max_pool(self, i, kernel, stride, padding, dilation, ceil=False):
        x = self.values[i]
        pool = {1: F.max_pool1d, 2: F.max_pool2d}[len(kernel)]
        y = pool(x.float(), kernel, stride, padding, dilation, ceil).to(x.dtype)
        window = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        return self.add("max_pool", [i], y, ceil=ceil, **window)

    def description(self, *outputs, plan):
        types = {torch.float32: "F32", torch.uint8: "U8"}
        return {
            "inputs": [{"name": "x", "type": types[self.x.dtype], "shape": ["N", *self.x.shape[1:]]}],
            "nodes": self.nodes,
            "outputs": [{"name": f"y{i}", "value": i} for i in outputs],
            "plan": plan,
        }

    def check(self, *outputs):
        """All builds, with all plans, give these values to the bit."""
        for on, plan in itertools.product(BUILDS, PLANS):
            with closing(build(self.description(*outputs, plan=plan), self.tensors, on)) as network:
                for threads in (1, 2):
                    found = network.run({"x": self.x}, threads)
                    for i in outputs:
                        assert found[f"y{i}"].dtype == self.values[i].dtype
                        assert torch.equal(bits(found[f"y{i}"]), bits(self.values[i])), (
                            build_name(on),
                            plan,
                            self.nodes[i - 1],
                        )


def bits(x):
    """So that 0 and -0 differ."""
    return x.view(torch.int32) if x.dtype == torch.float32 else x


def named(prefix, q):
    return {f"{prefix}scale": q.scale, f"{prefix}zero": q.zero}


def whole_input(seed, *shape):
    """A network whose input is whole numbers."""
    return Whole(torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8), seed)


@st.composite
def convolutions(draw):
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = (groups * draw(st.integers(1, 9)) for _ in "io")
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    stride = draw(st.sampled_from([[1] * rank, [1] * rank, [2] * rank, [draw(st.integers(1, 3)) for _ in range(rank)]]))
    padding = [draw(st.integers(0, 2)) for _ in range(rank)]
    dilation = [draw(st.integers(1, 2)) for _ in range(rank)]
    least = [(k - 1) * d + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [max(1, low) + draw(st.integers(0, 8)) for low in least]
    batch = draw(st.sampled_from([1, 2, 5, 16, 17]))
    density = draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    to, residual = draw(st.booleans()), draw(st.booleans())
    clamp = draw(st.sampled_from([None, (0.0, float("inf")), (-0.3, 0.4)]))
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    return (
        (batch, inputs, *size),
        outputs,
        density,
        kernel,
        groups,
        window,
        to,
        residual,
        clamp,
        draw(st.integers(0, 99)),
    )


@given(convolutions())
def test_convolutions(case):
    shape, outputs, density, kernel, groups, window, to, residual, clamp, seed = case
    net = whole_input(seed, *shape)
    of = net.quantization()
    settings = {"kernel": kernel, "groups": groups, **window}
    added = None
    if residual:
        q = net.quantization()
        added = net.product(0, of, outputs, 0.5, to=q, **settings), q
    result = net.product(
        0, of, outputs, density, to=net.quantization() if to else None, residual=added, clamp=clamp, **settings
    )
    net.check(result)


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([(1,), (3,), (16,), (33,), (2, 5), (1, 7)]),
    st.sampled_from([0.05, 0.3, 1.0]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_linear_layers(inputs, outputs, before, density, to, residual, seed):
    net = whole_input(seed, *before, inputs)
    of, q = net.quantization(), net.quantization()
    added = (net.product(0, of, outputs, 0.5, to=q), q) if residual else None
    net.check(net.product(0, of, outputs, density, to=net.quantization() if to else None, residual=added))


@given(
    st.sampled_from([1, 4, 16, 20]),
    st.integers(1, 9),
    st.integers(4, 11),
    st.integers(4, 11),
    st.sampled_from([([2, 2], [2, 2], [0, 0]), ([3, 3], [2, 2], [1, 1]), ([3, 2], [1, 3], [1, 0])]),
    st.booleans(),
    st.integers(0, 99),
)
def test_a_network(batch, channels, height, width, window, ceil, seed):
    """Quantised, convolved twice with a residual, pooled, summed, averaged and classified; and some of it as floats."""
    x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
    net = Whole(x, seed)
    a, b, c, d, e, f = (net.quantization() for _ in "abcdef")
    conv = {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}
    first = net.product(net.quantize(0, a), a, channels, 1.0, to=b, clamp=(0.0, float("inf")), **conv)
    second = net.product(first, b, channels, 0.4, to=c, **conv)
    third = net.product(second, c, channels, 0.4, to=d, residual=(first, b), **conv)
    total = net.sum(second, third, c, d, e, (-0.2, 0.9))
    kernel, stride, padding = window
    pooled = net.max_pool(total, kernel, stride, padding, [1, 1], ceil)
    strided = net.product(pooled, e, 8, 0.5, to=f, **{**conv, "stride": [2, 2]})
    back = net.dequantize(strided, f)
    mean = net.mean(strided, f)
    flat = net.add("flatten", [mean], net.values[mean].flatten(1))
    last = net.product(net.quantize(flat, a), a, 5, 0.7)
    net.check(last, back, strided, total)


@given(st.sampled_from([1, 3, 16, 18]), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
def test_concatenation_and_flattening(batch, one, two, size, seed):
    net = whole_input(seed, batch, 4, size, size + 1)
    of, q, r = net.quantization(), net.quantization(), net.quantization()
    conv = {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}
    a, b = net.product(0, of, one, 0.5, to=q, **conv), net.product(0, of, two, 0.5, to=q, **conv)
    joined = net.add("concat", [a, b], torch.cat([net.values[a], net.values[b]], 1), dim=1)
    then = net.product(joined, r, 3, 0.5, to=q, **conv)
    flat = net.add("flatten", [joined], net.values[joined].flatten(1))
    net.check(net.product(flat, q, 7, 0.3), then, joined)


def test_padding_that_differs_between_readers():
    """Two convolutions of one input take different numbers for zero: the padding of one is not that of the other."""
    net = whole_input(3, 2, 5, 6, 6)
    conv = {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}
    q = net.quantization()
    first = net.product(0, Quantization(0.1, 7), 5, 0.5, to=q, **conv)
    a = net.product(first, Quantization(0.1, 9), 4, 0.5, **conv)
    b = net.product(first, Quantization(0.1, 200), 4, 0.5, to=q, **conv)
    net.check(a, b)


def test_rounding():
    """Halves go to the even number, and what does not fit or is no number to the nearest end."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, inf, -inf, nan, 252.5, 251.5]])
    net = Whole(x, 0)
    result = net.quantize(0, Quantization(1.0, 3))
    net.check(result)
    assert net.values[result].tolist() == [[3, 5, 5, 3, 1, 255, 0, 255, 0, 0, 255, 255]]


def refused(node, tensors, shape=("N", 4, 5, 5), dtype="U8"):
    description = {
        "inputs": [{"name": "x", "type": dtype, "shape": list(shape)}],
        "nodes": [{"in": [0], **node}],
        "outputs": [{"name": "y", "value": 1}],
        "example": {"N": 1},
    }
    with pytest.raises(Refused) as error:
        build(json.dumps(description).encode(), tensors).close()
    return str(error.value)


PRODUCT = {
    "op": "quantized_conv",
    "in": [0, "w", None, None, "s"],
    "stride": [1, 1],
    "padding": [0, 0],
    "dilation": [1, 1],
    "groups": 1,
    "scale": 0.1,
    "zero": 3,
}
TENSORS = {"w": torch.ones(2, 4, 1, 1, dtype=torch.int8), "s": torch.ones(2)}


@pytest.mark.parametrize(
    ("node", "tensors", "why"),
    [
        ({"zero": 256}, {}, "from 0 to 255"),
        ({"zero": -1}, {}, "from 0 to 255"),
        ({"zero": 1.5}, {}, "no whole number"),
        ({"scale": 0}, {}, "positive"),
        ({"scale": "nan"}, {}, "positive"),
        ({"scale": 1e-40}, {}, "positive"),
        ({"scale": "inf"}, {}, "positive"),
        ({"out_scale": 1}, {}, "out_zero"),
        ({"activation": ["gelu"]}, {}, "clamp"),
        ({"activation": ["clamp", 1, 0]}, {}, "wrong order"),
        ({"in": [0, "w"]}, {}, "no scale"),
        ({"in": [0, "w", None, None, None]}, {}, "no scale"),
        ({"in": [0, "w", None, 0, "s"], "residual_scale": 1, "residual_zero": 0}, {}, "residual"),
        ({}, {"w": torch.ones(2, 4, 1, 1)}, "must be I8"),
        ({}, {"s": torch.ones(3)}, "scale"),
        ({}, {"w": torch.ones(2, 3, 1, 1, dtype=torch.int8)}, "second dimension"),
        ({}, {"w": torch.ones(2, 4, 9, 9, dtype=torch.int8)}, "larger than"),
        ({"groups": 0}, {}, "groups"),
    ],
)
def test_products_that_are_refused(node, tensors, why):
    assert why in refused({**PRODUCT, **node}, {**TENSORS, **tensors})


@pytest.mark.parametrize(("x", "zero", "weight"), [(255, 0, -128), (0, 255, -128), (0, 255, 127), (255, 0, 127)])
def test_the_largest_sums_are_exact(x, zero, weight):
    """Some instructions for such products saturate at 16 bits."""
    depth = 65_536
    whole = Whole(torch.full((2, depth), x, dtype=torch.uint8), 0)
    read = [0, whole.tensor(torch.full((1, depth), weight, dtype=torch.int8)), None, None, whole.tensor(torch.ones(1))]
    total = torch.full((2, 1), float(depth * weight * (x - zero)))
    whole.check(whole.add("quantized_linear", read, total, scale=1.0, zero=zero))


def test_a_constant_that_is_quantised_in_the_network():
    whole = Whole(torch.randn(3, 4), 0)
    c, of = torch.randn(3, 4), Quantization(0.02, 100)
    q = whole.add("quantize", [whole.tensor(c)], quantize(c, of), **named("", of))
    whole.check(whole.product(q, of, 5, 0.3))


def test_sums_that_might_overflow_are_refused():
    tensors = {"w": torch.ones(1, 70_000, dtype=torch.int8), "s": torch.ones(1)}
    node = {"op": "quantized_linear", "in": [0, "w", None, None, "s"], "scale": 1, "zero": 0}
    assert "65536" in refused(node, tensors, shape=("N", 70_000))


@pytest.mark.parametrize(
    "node",
    [
        {"op": "unary", "function": "neg"},
        {"op": "binary", "function": "add", "in": [0, 0]},
        {"op": "cast", "type": "F32"},
        {"op": "reduce", "function": "sum", "dims": [1], "keep": False},
        {"op": "average_pool", "kernel": [1, 1], "stride": [1, 1], "padding": [0, 0], "ceil": False},
        {"op": "permute", "dims": [0, 2, 3, 1]},
        {"op": "activate", "activation": ["gelu"]},
        {"op": "softmax", "dim": 1},
        {"op": "quantize", "scale": 1, "zero": 0},
    ],
)
def test_other_operations_refuse_whole_numbers(node):
    assert "U8" in refused(node, {})


@pytest.mark.parametrize("node", [{"op": "cast", "type": "U8"}, {"op": "dequantize", "scale": 1, "zero": 0}])
def test_floats_are_no_whole_numbers(node):
    assert "U8" in refused(node, {}, dtype="F32")
