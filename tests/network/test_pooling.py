"""Pools of 1 to 3 dimensions: what they compute is PyTorch's, and what does not fit is refused."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from networks import Refused, run_one

threads = st.sampled_from([1, 2])
MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE_MAX = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
ADAPTIVE_AVERAGE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def close(found, exact):
    """The found numbers are those that were computed in double precision, up to some roundings."""
    assert found.shape == exact.shape
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=1e-6, equal_nan=True)


def numbers(data, spatial, least, most):
    return [data.draw(st.integers(least, most)) for _ in range(spatial)]


def drawn(data, dilated):
    """An input, and the attributes of a pool that fit it."""
    spatial = data.draw(st.integers(1, 3))
    shape = [data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3)), *numbers(data, spatial, 1, 24 // spatial)]
    kernel, stride = numbers(data, spatial, 1, 5), numbers(data, spatial, 1, 4)
    dilation = numbers(data, spatial, 1, 3) if dilated else [1] * spatial
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    for size, k, d, p in zip(shape[2:], kernel, dilation, padding, strict=True):
        assume(size + 2 * p >= (k - 1) * d + 1)
    return torch.randn(shape), {
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        **({"dilation": dilation} if dilated else {}),
        "ceil": data.draw(st.booleans()),
    }


@given(threads, st.data())
def test_max_pool(threads, data):
    x, attributes = drawn(data, dilated=True)
    kernel, stride, padding, dilation, ceil = attributes.values()
    assume(x.shape[0])
    expected = MAX[x.dim() - 2](x, kernel, stride, padding, dilation, ceil)
    assert torch.equal(run_one("max_pool", [x], threads=threads, **attributes), expected)


@given(threads, st.data())
def test_average_pool(threads, data):
    x, attributes = drawn(data, dilated=False)
    kernel, stride, padding, ceil = attributes.values()
    assume(x.shape[0])
    if x.dim() == 5:  # PyTorch refuses kernels that are larger than the input without its padding
        assume(all(size >= k for size, k in zip(x.shape[2:], kernel, strict=True)))
    count = data.draw(st.booleans())
    attributes["count_padding"] = count
    divisor = data.draw(st.sampled_from([None, 1, 7, -2])) if x.dim() > 3 else None
    extra = {} if divisor is None else {"divisor": divisor}
    more = () if x.dim() == 3 else (divisor,)
    exact = AVERAGE[x.dim() - 2](x.double(), kernel, stride, padding, ceil, count, *more)
    found = run_one("average_pool", [x], threads=threads, **attributes, **extra)
    # The sum of a window is rounded, which may be much larger than what remains of it.
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("op", ["max_pool", "average_pool"])
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding", "ceil"),
    [
        ((2, 3, 112, 111), (3, 3), (2, 2), (1, 1), False),
        ((1, 2, 40, 41), (5, 5), (1, 1), (2, 2), False),
        ((1, 5, 28, 28), (2, 2), (2, 2), (0, 0), True),
        ((2, 2, 9000), (3,), (2,), (1,), True),
        ((2, 2, 9000), (7,), (1,), (0,), False),
        ((1, 2, 20000), (9000,), (300,), (4500,), False),
        ((1, 2, 20000), (10,), (3000,), (0,), True),
        ((3, 2, 33, 17), (4, 4), (4, 4), (0, 0), True),
        ((3, 8, 7, 7), (7, 7), (1, 1), (0, 0), False),
        ((3, 8, 14, 7), (2, 7), (2, 1), (0, 0), False),
        ((2, 4, 300, 1), (3, 1), (2, 1), (1, 0), False),
        ((2, 3, 8, 20, 21), (3, 3, 3), (2, 2, 2), (1, 1, 1), False),
        ((2, 3, 8, 4, 5), (3, 4, 5), (1, 1, 1), (1, 0, 0), False),
    ],
)
def test_pools_of_large_tensors(op, shape, kernel, stride, padding, ceil):
    x, spatial = torch.randn(shape), len(shape) - 2
    for threads in (1, 2):
        given = {"threads": threads, "kernel": kernel, "stride": stride, "padding": padding, "ceil": ceil}
        if op == "max_pool":
            exact = MAX[spatial](x, kernel, stride, padding, 1, ceil)
            assert torch.equal(run_one(op, [x], dilation=[1] * spatial, **given), exact)
        else:
            for count in (False, True):
                exact = AVERAGE[spatial](x.double(), kernel, stride, padding, ceil, count)
                close(run_one(op, [x], count_padding=count, **given), exact)


@given(threads, st.data())
def test_adaptive_pools(threads, data):
    spatial = data.draw(st.integers(1, 3))
    x = torch.randn(data.draw(st.integers(1, 2)), 3, *numbers(data, spatial, 1, 40 // spatial))
    size = [data.draw(st.just(1) | st.integers(1, 9)) for _ in range(spatial)]
    exact = ADAPTIVE_AVERAGE[spatial](x.double(), size)
    close(run_one("adaptive_average_pool", [x], threads=threads, size=size), exact)
    found = run_one("adaptive_max_pool", [x], threads=threads, size=size)
    assert torch.equal(found, ADAPTIVE_MAX[spatial](x, size))


@pytest.mark.parametrize("shape", [(2, 5, 56, 57), (1, 300, 7, 7), (2, 2, 5000), (2, 3, 9, 10, 11)])
def test_global_pools(shape):
    x, dims = torch.randn(shape), list(range(2, len(shape)))
    size = [1] * len(dims)
    close(run_one("adaptive_average_pool", [x], size=size), x.double().mean(dims, keepdim=True))
    assert torch.equal(run_one("adaptive_max_pool", [x], size=size), x.amax(dims, keepdim=True))


def test_nan_and_infinity():
    x = torch.randn(2, 3, 20, 37)
    x.view(-1)[torch.randint(0, x.numel(), (40,))] = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), 1]
    ).repeat(10)
    x[0, 0] = -float("inf")
    kept = {"kernel": [3, 3], "padding": [1, 1], "ceil": False}
    for stride in ([1, 1], [2, 2], [3, 3]):
        found = run_one("max_pool", [x], stride=stride, dilation=[1, 1], **kept)
        assert torch.equal(
            found.nan_to_num(12345, 2e30, -2e30), F.max_pool2d(x, 3, stride, 1).nan_to_num(12345, 2e30, -2e30)
        )
        found = run_one("average_pool", [x], stride=stride, count_padding=True, **kept)
        expected = F.avg_pool2d(x, 3, stride, 1)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    for op, function in (
        ("adaptive_max_pool", F.adaptive_max_pool2d),
        ("adaptive_average_pool", F.adaptive_avg_pool2d),
    ):
        for size in ([1, 1], [3, 2]):
            assert torch.allclose(run_one(op, [x], size=size), function(x, size), rtol=1e-5, atol=1e-6, equal_nan=True)


def test_no_images_and_no_channels():
    for shape in ((0, 3, 8, 8), (2, 0, 8, 8)):
        x = torch.zeros(shape)
        pool = {"kernel": [2, 2], "stride": [2, 2], "padding": [0, 0], "ceil": False}
        assert run_one("max_pool", [x], dilation=[1, 1], **pool).shape == (*shape[:2], 4, 4)
        assert run_one("average_pool", [x], count_padding=True, **pool).shape == (*shape[:2], 4, 4)
        assert run_one("adaptive_average_pool", [x], size=[1, 1]).shape == (*shape[:2], 1, 1)
    assert run_one("adaptive_max_pool", [torch.zeros(2, 3, 4)], size=[0]).shape == (2, 3, 0)


X = torch.zeros(1, 2, 8, 8)
POOL = {"kernel": [3, 3], "stride": [2, 2], "padding": [1, 1], "dilation": [1, 1], "ceil": False}


@pytest.mark.parametrize(
    ("op", "x", "attributes", "message"),
    [
        ("max_pool", X.long(), POOL, "its input is I64"),
        ("max_pool", X[0, 0], POOL, "does not have 3 to 5 dimensions"),
        ("max_pool", X[None, None], POOL, "does not have 3 to 5 dimensions"),
        ("max_pool", X[0], POOL, '"kernel" has 2 numbers, not 1'),
        ("max_pool", X, {**POOL, "kernel": [0, 3]}, '"kernel" has 0, and must have numbers from 1 to'),
        ("max_pool", X, {**POOL, "kernel": [2**40, 3]}, '"kernel" has 1099511627776'),
        ("max_pool", X, {**POOL, "stride": [1, -1]}, '"stride" has -1'),
        ("max_pool", X, {**POOL, "padding": [2, 1]}, '"padding" has 2, and must be at most half'),
        ("max_pool", X, {**POOL, "padding": [-1, 1]}, '"padding" has -1'),
        ("max_pool", X, {**POOL, "dilation": [1, 0]}, '"dilation" has 0'),
        ("max_pool", X, {**POOL, "dilation": [2**30] * 2, "kernel": [2**30] * 2}, "the kernel is 1152921503"),
        ("max_pool", X, {**POOL, "padding": []}, '"padding" has 0 numbers'),
        ("max_pool", X, {**POOL, "ceil": 1}, '"ceil" is not true or false'),
        ("max_pool", X, {**POOL, "kernel": [11, 3]}, "the kernel is 11 wide, and the padded input only 10"),
        ("max_pool", X[:, :, :0], POOL, "planes without elements"),
        ("average_pool", X, {**POOL, "padding": [2, 1]}, "at most half"),
        ("average_pool", X, {**POOL, "divisor": 0}, '"divisor" is 0'),
        ("average_pool", X, {**POOL, "count_padding": "yes"}, '"count_padding" is not true or false'),
        ("adaptive_average_pool", X, {"size": [1]}, '"size" has 1 numbers'),
        ("adaptive_average_pool", X, {"size": [1, -1]}, "cannot have the shape"),
        ("adaptive_average_pool", X, {"size": [2**40, 2**40]}, "too large"),
        ("adaptive_max_pool", X[:, :, :0], {"size": [1, 1]}, "planes without elements"),
        ("adaptive_max_pool", X.bool(), {"size": [1, 1]}, "its input is BOOL"),
    ],
)
def test_what_does_not_fit_is_refused(op, x, attributes, message):
    with pytest.raises(Refused, match=message):
        run_one(op, [x], **attributes)
