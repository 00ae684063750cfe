"""The three products of the C++ kernels against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fggp.acceleration.layout import images_last, is_images_last
from fggp.acceleration.products import Product, Products, Window

pair = st.tuples(st.integers(1, 3), st.integers(1, 3))


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def masked(shape, density, seed, channels_last=False):
    """A weight, and a mask of it; pruned weights are zero, and so is an active one."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    mask.view(-1)[0] = True
    weight = random(*shape, seed=seed) * mask
    weight.view(-1)[0] = 0
    if channels_last:
        return (t.contiguous(memory_format=torch.channels_last) for t in (weight, mask))
    return weight, mask


def check(found: Tensor, exact: Tensor, terms: int, size: Tensor) -> None:
    """found: within the rounding of sums of so many numbers, whose sizes sum up to `size`, and of bfloat16."""
    step = 2.0**-8 if found.dtype == torch.bfloat16 else 0
    assert found.shape == exact.shape
    assert ((found.double() - exact).abs() <= terms * 2.0**-23 * size + step * exact.abs() + 1e-30).all()


def check_products(x, weight, mask, bias, window, dtype):
    """Output and gradients, and that they do not depend on the number of threads."""
    x = x.to(dtype)
    size = (1, 1) if window is None else tuple(x.shape[2:])
    products = Products(mask, window, size)
    given = [x.requires_grad_(), weight.requires_grad_(), None if bias is None else bias.requires_grad_()]
    exact = [None if t is None else t.detach().double().requires_grad_() for t in given]

    def dense(x, weight, bias):
        if window is None:
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, window.stride, window.padding, window.dilation)

    y, reference = Product.apply(*given, products), dense(*exact)
    dy = random(*y.shape, seed=1).to(dtype)
    wanted = [t for t in given if t is not None]
    results = torch.autograd.grad(y, wanted, dy, retain_graph=True)
    references = torch.autograd.grad(reference, [t for t in exact if t is not None], dy.double(), retain_graph=True)
    # The same sums of absolute values bound the rounding.
    positive = [None if t is None else t.detach().abs().requires_grad_() for t in exact]
    total = dense(*positive)
    sizes = torch.autograd.grad(total, [t for t in positive if t is not None], dy.double().abs())
    terms = 8 + weight[0].numel() + dy.numel()
    check(y.detach(), reference.detach(), terms, total.detach())
    for of, result, exact_result, bound in zip(wanted, results, references, sizes, strict=True):
        if of is weight:
            assert torch.equal(result, result * mask)
            exact_result = exact_result * mask
        check(result, exact_result, terms, bound)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            again = Product.apply(*given, products)
            assert torch.equal(again, y)
            for one, other in zip(torch.autograd.grad(again, wanted, dy), results, strict=True):
                assert torch.equal(one, other)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    n=st.integers(1, 70),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=pair,
    stride=pair,
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=pair,
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    channels_last=st.booleans(),
    bias=st.booleans(),
)
def test_convolutions(build, dtype, n, channels, size, kernel, stride, padding, dilation, density, channels_last, bias):
    window = Window(kernel, stride, padding, dilation)
    if min(window.output_size(size)) < 1:
        return
    out, into = channels
    weight, mask = masked((out, into, *kernel), density, n, channels_last)
    check_products(random(n, into, *size, seed=2), weight, mask, random(out, seed=3) if bias else None, window, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    lead=st.lists(st.integers(1, 40), min_size=0, max_size=3),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    density=st.sampled_from([0.0, 0.1, 1.0]),
    bias=st.booleans(),
)
def test_linear_layers(build, dtype, lead, channels, density, bias):
    out, into = channels
    weight, mask = masked((out, into), density, out)
    check_products(random(*lead, into, seed=2), weight, mask, random(out, seed=3) if bias else None, None, dtype)


@pytest.mark.parametrize(("into", "size"), [(700, (1, 1)), (300, (5, 40)), (40, (60, 70))])
def test_what_does_not_fit_a_pack(build, into, size):
    weight, mask = masked((5, into, 3, 3), 0.1, 0)
    check_products(random(3, into, *size, seed=2), weight, mask, None, Window((3, 3), padding=(1, 1)), torch.float32)


def test_wide_linear_layers(build):
    weight, mask = masked((9, 5000), 0.1, 0)
    check_products(random(130, 5000, seed=2), weight, mask, None, None, torch.float32)


def test_the_layout_is_kept_and_stored_once():
    x = images_last(random(5, 3, 4, 6, seed=0))
    assert is_images_last(x)
    assert images_last(x) is x
    weight, mask = masked((2, 3, 3, 3), 0.5, 0)
    y = Product.apply(x, weight, None, Products(mask, Window((3, 3), padding=(1, 1)), (4, 6)))
    assert is_images_last(y)
    assert not y._is_view()
    assert not is_images_last(random(5, 3, 4, 6, seed=0))
    assert not is_images_last(random(1, 3, 4, 6, seed=0))  # its images are last and first


def test_rounding_to_bfloat16():
    x = torch.tensor([1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 3e38, float("inf"), float("nan"), -1e-40])
    weight, mask = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    products = Products(mask, None)
    half = torch.full((len(x), 1), 1.0, dtype=torch.bfloat16)
    for value in x:  # as the weight, which is float32
        y = products.forward(half, weight * value, None)
        assert torch.equal(y.view(torch.int16), (half * value).view(torch.int16)) or (value.isnan() and y.isnan().all())
