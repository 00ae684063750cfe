"""Dense convolutions and transposed ones: what they compute is PyTorch's, and what does not fit is refused."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from networks import Refused, build, closing, run_one

threads = st.sampled_from([1, 2])
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
ACTIVATIONS = {
    "none": (None, lambda y: y),
    "relu": (["clamp", 0, "inf"], torch.relu),
    "relu6": (["clamp", 0, 6], F.relu6),
    "silu": (["silu"], F.silu),
}


def close(found, function, x, weight, bias, *attributes):
    """The found numbers are those that were computed in double precision, up to rounding in each sum."""
    bias = None if bias is None else bias.double()
    exact = function(x.double(), weight.double(), bias, *attributes)
    size = function(x.double().abs(), weight.double().abs(), None if bias is None else bias.abs(), *attributes)
    assert found.shape == exact.shape
    assert ((found.double() - exact).abs() <= 1e-6 * size + 1e-30).all()


def numbers(data, spatial, least, most):
    return [data.draw(st.integers(least, most)) for _ in range(spatial)]


def attributes_of(stride, padding, dilation, groups, **more):
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, **more}


@given(threads, st.data())
def test_conv(threads, data):
    spatial = data.draw(st.integers(1, 3))
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    of_group, filters = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    size = numbers(data, spatial, 1, {1: 60, 2: 14, 3: 7}[spatial])
    kernel, stride = numbers(data, spatial, 1, 4), numbers(data, spatial, 1, 3)
    padding, dilation = numbers(data, spatial, 0, 4), numbers(data, spatial, 1, 3)
    for s, k, p, d in zip(size, kernel, padding, dilation, strict=True):
        assume(s + 2 * p >= (k - 1) * d + 1)
    x = torch.randn(data.draw(st.integers(1, 3)), groups * of_group, *size)
    weight = torch.randn(groups * filters, of_group, *kernel)
    bias = torch.randn(groups * filters) if data.draw(st.booleans()) else None
    constant = (
        data.draw(st.sampled_from([(), (1,), (1, 2)])) if bias is not None else data.draw(st.sampled_from([(), (1,)]))
    )
    found = run_one(
        "conv", [x, weight, bias], constant, threads=threads, **attributes_of(stride, padding, dilation, groups)
    )
    close(found, CONV[spatial], x, weight, bias, stride, padding, dilation, groups)


@given(st.sampled_from([1, 2, 3]), st.data())
def test_images_that_are_wide_enough_to_be_read_without_patches(threads, data):
    channels, filters = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 40))
    size, kernel = numbers(data, 2, 6, 40), numbers(data, 2, 1, 4)
    stride, dilation = numbers(data, 2, 1, 3), numbers(data, 2, 1, 3)
    padding = numbers(data, 2, 0, 4)
    for s, k, p, d in zip(size, kernel, padding, dilation, strict=True):
        assume(s + 2 * p >= (k - 1) * d + 1)
    x, weight = torch.randn(data.draw(st.integers(1, 3)), channels, *size), torch.randn(filters, channels, *kernel)
    bias = torch.randn(filters) if data.draw(st.booleans()) else None
    found = run_one("conv", [x, weight, bias], (1,), threads=threads, **attributes_of(stride, padding, dilation, 1))
    close(found, F.conv2d, x, weight, bias, stride, padding, dilation, 1)


LARGE = [
    # input, weight, stride, padding, dilation, groups
    ((1, 130, 30, 31), (70, 130, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((2, 96, 57, 58), (33, 96, 3, 3), (2, 2), (1, 1), (1, 1), 1),
    ((2, 40, 61, 62), (20, 40, 3, 2), (3, 2), (0, 2), (2, 3), 1),
    ((1, 8, 100, 9), (15, 8, 5, 3), (1, 1), (2, 1), (1, 1), 1),
    ((1, 20, 3000), (30, 20, 5), (2,), (2,), (1,), 1),
    ((1, 3, 57, 63), (32, 3, 7, 7), (2, 2), (3, 3), (1, 1), 1),
    ((2, 64, 28, 29), (40, 64, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((3, 130, 7, 7), (65, 130, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((2, 64, 20, 20), (128, 64, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 64, 21, 20), (128, 64, 1, 1), (2, 2), (0, 0), (1, 1), 1),
    ((5, 96, 1, 1), (24, 96, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((5, 16, 6, 7), (24, 16, 6, 7), (3, 3), (0, 0), (1, 1), 1),
    ((2, 16, 6, 7), (24, 16, 6, 7), (3, 3), (1, 0), (1, 1), 1),
    ((1, 32, 30, 31), (16, 32, 3, 3), (1, 1), (2, 2), (2, 2), 1),
    ((2, 64, 30, 31), (64, 4, 3, 3), (1, 1), (1, 1), (1, 1), 16),
    ((2, 64, 40, 41), (128, 32, 1, 1), (1, 1), (0, 0), (1, 1), 2),
    ((1, 4, 5000), (8, 4, 9), (2,), (4,), (1,), 1),
    ((1, 8, 9, 20, 21), (12, 8, 3, 3, 3), (1, 2, 2), (1, 1, 1), (1, 1, 1), 1),
    # depthwise
    ((2, 32, 56, 57), (32, 1, 3, 3), (1, 1), (1, 1), (1, 1), 32),
    ((2, 32, 57, 113), (32, 1, 3, 3), (2, 2), (1, 1), (1, 1), 32),
    ((1, 3, 300, 301), (3, 1, 5, 5), (1, 1), (2, 2), (1, 1), 3),
    ((3, 64, 7, 7), (64, 1, 7, 7), (1, 1), (3, 3), (1, 1), 64),
    ((2, 8, 40, 40), (16, 1, 3, 3), (1, 1), (2, 2), (2, 2), 8),
    ((2, 8, 40, 40), (8, 1, 4, 2), (1, 2), (1, 1), (1, 1), 8),
    ((2, 8, 40, 40), (8, 1, 3, 3), (3, 3), (1, 1), (1, 1), 8),
    ((2, 8, 40, 40), (8, 1, 3, 3), (2, 1), (1, 1), (1, 1), 8),
    ((1, 4, 7000), (4, 1, 31), (1,), (15,), (1,), 4),
    ((1, 4, 7000), (4, 1, 4), (2,), (1,), (1,), 4),
    ((1, 6, 9, 20, 21), (6, 1, 3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 6),
    ((1, 6, 9, 20, 21), (6, 1, 3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), 6),
    ((1, 2, 3, 3), (2, 1, 3, 3), (1, 1), (2, 2), (2, 2), 2),
    ((1, 2, 40, 4000), (2, 1, 3, 3), (1, 1), (900, 900), (900, 900), 2),
]


@pytest.mark.parametrize(("size", "weights", "stride", "padding", "dilation", "groups"), LARGE)
def test_conv_of_large_tensors(size, weights, stride, padding, dilation, groups):
    x, weight, bias = torch.randn(size), torch.randn(weights), torch.randn(weights[0])
    for threads, constant in ((1, ()), (2, ()), (2, (1, 2))):
        attributes = attributes_of(stride, padding, dilation, groups)
        found = run_one("conv", [x, weight, bias], constant, threads=threads, **attributes)
        close(found, CONV[len(size) - 2], x, weight, bias, stride, padding, dilation, groups)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("size", "weights", "groups", "padding"),
    [
        ((2, 6, 13, 19), (8, 6, 3, 3), 1, 1),
        ((2, 6, 13, 19), (8, 6, 1, 1), 1, 0),
        ((3, 6, 3, 3), (8, 6, 3, 3), 1, 0),
        ((2, 6, 13, 19), (9, 2, 3, 3), 3, 1),
        ((2, 6, 33, 37), (6, 1, 3, 3), 6, 1),
        ((1, 2, 3, 1100), (2, 1, 3, 3), 2, 1),
    ],
)
def test_bias_residual_and_activation(activation, size, weights, groups, padding):
    written, function = ACTIVATIONS[activation]
    x, weight, bias = torch.randn(size), torch.randn(weights), torch.randn(weights[0])
    plain = F.conv2d(x.double(), weight.double(), bias.double(), 1, padding, 1, groups)
    residual = torch.randn(plain.shape)
    attributes = attributes_of([1, 1], [padding] * 2, [1, 1], groups, **({"activation": written} if written else {}))
    for threads in (1, 2):
        for more, exact in (([], plain), ([residual], plain + residual.double())):
            found = run_one("conv", [x, weight, bias, *more], [1, 2], threads=threads, **attributes)
            assert torch.allclose(found.double(), function(exact), rtol=1e-5, atol=2e-5)
    found = run_one("conv", [x, weight, None, residual], [1], **attributes)
    exact = F.conv2d(x.double(), weight.double(), None, 1, padding, 1, groups) + residual.double()
    assert torch.allclose(found.double(), function(exact), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("groups", [1, 4])
def test_nan_stays_where_it_is_read(groups):
    x, weight = torch.randn(2, 4, 9, 10), torch.randn(4, 4 // groups, 3, 3)
    x[0, 1, 4, 5] = float("nan")
    x[1, 2, 0, 0] = float("inf")
    attributes = attributes_of([1, 1], [1, 1], [1, 1], groups, activation=["clamp", 0, "inf"])
    found = run_one("conv", [x, weight], [1], **attributes)
    expected = F.conv2d(x, weight, None, 1, 1, 1, groups).relu()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@given(threads, st.data())
def test_conv_transpose(threads, data):
    spatial = data.draw(st.integers(1, 3))
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    of_group, filters = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    size = numbers(data, spatial, 1, {1: 40, 2: 9, 3: 5}[spatial])
    kernel, stride = numbers(data, spatial, 1, 4), numbers(data, spatial, 1, 3)
    padding, dilation = numbers(data, spatial, 0, 3), numbers(data, spatial, 1, 3)
    more = [data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    for n, k, s, p, d, o in zip(size, kernel, stride, padding, dilation, more, strict=True):
        assume((n - 1) * s - 2 * p + (k - 1) * d + o + 1 >= 1)
    x = torch.randn(data.draw(st.integers(1, 3)), groups * of_group, *size)
    weight = torch.randn(groups * of_group, filters, *kernel)
    bias = torch.randn(groups * filters) if data.draw(st.booleans()) else None
    attributes = attributes_of(stride, padding, dilation, groups, output_padding=more)
    constant = data.draw(st.sampled_from([(), (1,)]))
    found = run_one("conv_transpose", [x, weight, bias], constant, threads=threads, **attributes)
    close(found, TRANSPOSED[spatial], x, weight, bias, stride, padding, more, groups, dilation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("size", "weights", "kernel", "stride", "padding", "groups"),
    [
        ((2, 40, 15, 17), (40, 24), 2, 2, 0, 1),
        ((1, 20, 40, 41), (20, 9), 4, 2, 1, 1),
        ((2, 12, 19, 11), (12, 5), 3, 3, 1, 4),
        ((1, 6, 20, 20), (6, 70), 5, 1, 2, 2),
    ],
)
def test_large_conv_transpose(activation, size, weights, kernel, stride, padding, groups):
    written, function = ACTIVATIONS[activation]
    x, weight = torch.randn(size), torch.randn(*weights, kernel, kernel)
    bias = torch.randn(weights[1] * groups)
    attributes = attributes_of([stride] * 2, [padding] * 2, [1, 1], groups, output_padding=[0, 0])
    if written:
        attributes["activation"] = written
    exact = function(F.conv_transpose2d(x.double(), weight.double(), bias.double(), stride, padding, 0, groups))
    for threads, constant in ((1, ()), (2, (1, 2))):
        found = run_one("conv_transpose", [x, weight, bias], constant, threads=threads, **attributes)
        assert torch.allclose(found.double(), exact, rtol=1e-5, atol=3e-5)


def test_free_sizes():
    """One network on images of several sizes: a plan for each."""
    node = {"op": "conv", "in": [0, "w"], **attributes_of([2, 2], [1, 1], [1, 1], 1)}
    description = {
        "inputs": [{"name": "x", "type": "F32", "shape": ["N", 3, "H", "W"]}],
        "nodes": [node],
        "outputs": [{"name": "y", "value": 1}],
    }
    weight = torch.randn(5, 3, 3, 3)
    with closing(build(description, {"w": weight})) as made:
        for shape in ((1, 3, 9, 8), (2, 3, 20, 31), (1, 3, 9, 8)):
            x = torch.randn(shape)
            close(made.run({"x": x}, 2)["y"], F.conv2d, x, weight, None, 2, 1)


def test_sizes_of_0():
    attributes = attributes_of([1, 1], [1, 1], [1, 1], 1)
    for images, channels, filters in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        x, bias = torch.zeros(images, channels, 5, 5), torch.randn(filters)
        expected = bias[None, :, None, None].expand(images, filters, 5, 5)
        for constant in ((), (1, 2)):
            found = run_one("conv", [x, torch.zeros(filters, channels, 3, 3), bias], constant, **attributes)
            assert torch.equal(found, expected)
            inputs = [x, torch.zeros(channels, filters, 3, 3), bias]
            assert torch.equal(
                run_one("conv_transpose", inputs, constant, output_padding=[0, 0], **attributes), expected
            )


X, W = torch.zeros(1, 4, 8, 8), torch.zeros(6, 4, 3, 3)
PLAIN = attributes_of([1, 1], [1, 1], [1, 1], 1)


@pytest.mark.parametrize(
    ("inputs", "attributes", "message"),
    [
        ([X], {}, "it reads 2 or more tensors"),
        ([X, None], {}, "it reads 2 or more tensors"),
        ([X, W, None, None, X], {}, "it reads 2 or more tensors"),
        ([X.long(), W], {}, "its input is I64"),
        ([X, W, torch.zeros(6, dtype=torch.bool)], {}, "its bias is BOOL"),
        ([X[0, 0], W], {}, "does not have 3 to 5 dimensions"),
        ([X[0], W], {}, "must have as many dimensions"),
        ([X, W[:, :3]], {}, "the weight's second dimension must be 4"),
        ([X, W, torch.zeros(5)], {}, r"its bias is F32 \[5\]; it must be F32 \[6\]"),
        ([X, W, None, X], {}, r"its residual is F32 \[1, 4, 8, 8\]; it must be F32 \[1, 6, 8, 8\]"),
        ([X, W], {"groups": 0}, '"groups" is 0, and must divide'),
        ([X, W], {"groups": -2}, '"groups" is -2'),
        ([X, W], {"groups": 3}, '"groups" is 3'),
        ([X, W], {"groups": 2}, "the weight's second dimension must be 2"),
        ([X, W], {"stride": [1]}, '"stride" has 1 numbers, not 2'),
        ([X, W], {"stride": [0, 1]}, '"stride" has 0'),
        ([X, W], {"padding": [-1, 0]}, '"padding" has -1'),
        ([X, W], {"dilation": [1, 2**40]}, '"dilation" has 1099511627776'),
        ([X, W], {"dilation": [1, 2**30]}, "its kernel, 2147483649 wide, is larger than its padded input, which is 10"),
        ([X, W], {"padding": [2**30, 2**30]}, "too large"),
        ([X, W[:, :, :0]], {}, "a dimension of a wrong size"),
        ([X[:, :, :0], W], {}, "a dimension of a wrong size"),
        ([X, W], {"activation": ["sine"]}, 'no activation "sine"'),
    ],
)
def test_wrong_convolutions_are_refused(inputs, attributes, message):
    with pytest.raises(Refused, match=message):
        run_one("conv", inputs, **{**PLAIN, **attributes})


V = torch.zeros(4, 6, 3, 3)


@pytest.mark.parametrize(
    ("inputs", "attributes", "message"),
    [
        ([X, V, None, X], {}, "it reads 2 or more tensors"),
        ([X, V[:3]], {}, "the weight's first dimension must be the input's channels"),
        ([X, V, torch.zeros(4)], {}, r"its bias is F32 \[4\]; it must be F32 \[6\]"),
        ([X, V, torch.zeros(6)], {"groups": 2}, r"its bias is F32 \[6\]; it must be F32 \[12\]"),
        ([X, V], {"groups": 3}, '"groups" is 3'),
        ([X, V], {"output_padding": [0, 1]}, '"output_padding" has 1, and must be smaller'),
        ([X, V], {"output_padding": [0]}, '"output_padding" has 1 numbers'),
        ([X, V], {"padding": [5, 5]}, "its output would have the size 0"),
        ([X, V], {"padding": [2**30, 0]}, "its output would have the size -2147483638"),
        ([X, V], {"stride": [2**30, 2**30]}, "too large"),
        ([X[:, :0], torch.zeros(0, 6, 3, 3)], {"groups": 2**62}, "it has too many channels"),
    ],
)
def test_wrong_transposed_convolutions_are_refused(inputs, attributes, message):
    with pytest.raises(Refused, match=message):
        run_one("conv_transpose", inputs, **{**PLAIN, "output_padding": [0, 0], **attributes})
