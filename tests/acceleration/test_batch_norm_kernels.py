"""Batch norm in the C++ kernels against PyTorch's in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from fggp.acceleration.batch_norm import BatchNorm
from fggp.acceleration.layout import empty_images_last, images_last, is_images_last
from fggp.acceleration.modules import BatchNorm2d


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(found, exact, size, dtype):
    """Within so many roundings of numbers of a size, and of bfloat16."""
    step = 2.0**-8 if dtype == torch.bfloat16 else 0
    assert found.shape == exact.shape
    assert ((found.double() - exact).abs() <= 2.0**-18 * size + step * exact.abs() + 1e-30).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    n=st.integers(2, 40),
    channels=st.integers(1, 5),
    size=st.tuples(st.integers(1, 9), st.integers(1, 70)),
    mean=st.sampled_from([0.0, 3.0, -1e4]),
    affine=st.booleans(),
)
@example(n=40, channels=1, size=(9, 70), mean=-1e4, affine=True)
def test_outputs_and_gradients(build, dtype, n, channels, size, mean, affine):
    if dtype == torch.bfloat16:
        mean /= 1e3  # of such a mean, bfloat16 has few digits left
    x = images_last((random(n, channels, *size, seed=n) + mean).to(dtype)).requires_grad_()
    weight = random(channels, seed=1).requires_grad_() if affine else None
    bias = random(channels, seed=2).requires_grad_() if affine else None
    given_ = [t for t in (x, weight, bias) if t is not None]
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias)]

    y, means, variances = BatchNorm.apply(x, weight, bias, 1e-5)
    reference = F.batch_norm(exact[0], None, None, exact[1], exact[2], training=True, eps=1e-5)
    dy = random(*y.shape, seed=3).to(dtype)
    results = torch.autograd.grad(y, given_, dy, retain_graph=True)
    references = torch.autograd.grad(reference, [t for t in exact if t is not None], dy.double())

    double = x.detach().double()
    variance, middle = torch.var_mean(double, (0, 2, 3), correction=0)
    close(means, middle, variance.sqrt() + middle.abs() * 2.0**-5, torch.float32)
    close(variances, variance, variance, torch.float32)
    # A mean rounded to float32 is apart from the mean by a part of itself, and the norm divides by √(variance + ε).
    scale = 1 / (variance + 1e-5).sqrt()
    apart = 1 + 2.0**-5 * middle.abs() * scale
    factor = 1 if weight is None else weight.detach().double().abs()
    shape = (1, channels, 1, 1)
    assert y.stride() == empty_images_last(x.shape, x).stride()
    close(y.detach(), reference.detach(), (8 * factor * apart).view(shape), dtype)
    count = y.numel() / channels
    close(results[0], references[0], (64 * factor * scale * apart).view(shape), dtype)
    for result, exact_result in zip(results[1:], references[1:], strict=True):
        close(result, exact_result, 8 * count * apart, torch.float32)

    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            again = BatchNorm.apply(x, weight, bias, 1e-5)
            assert all(map(torch.equal, again, (y, means, variances)))
            assert all(map(torch.equal, torch.autograd.grad(again[0], given_, dy), results))
    finally:
        torch.set_num_threads(before)


def test_numbers_that_are_all_equal_have_no_variance(build):
    x = images_last(torch.full((7, 2, 50, 40), 0.1)).requires_grad_()
    y, mean, variance = BatchNorm.apply(x, None, None, 1e-5)
    assert torch.equal(mean, torch.full((2,), 0.1))
    assert variance.abs().max() < 1e-14
    assert y.abs().max() < 1e-4
    assert torch.autograd.grad(y.sum(), x)[0].abs().max() < 1e-2


def test_not_a_number_reaches_its_channel_alone(build):
    x = images_last(random(3, 2, 4, 5, seed=0))
    x[1, 0, 2, 3] = float("nan")
    y, mean, variance = BatchNorm.apply(x, None, None, 1e-5)
    assert y[:, 0].isnan().all()
    assert mean.isnan().tolist() == variance.isnan().tolist() == [True, False]
    assert not y[:, 1].isnan().any()


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_gradients_that_nobody_needs_are_not_computed(wanted):
    x, weight = images_last(random(3, 2, 4, 5, seed=0)), torch.ones(2)
    y, _, _ = BatchNorm.apply(x.requires_grad_(wanted[0]), weight.requires_grad_(wanted[1]), None, 1e-5)
    y.square().sum().backward()
    assert (x.grad is not None, weight.grad is not None) == wanted


MODULES = {
    "usual": lambda: nn.BatchNorm2d(3),
    "other momentum": lambda: nn.BatchNorm2d(3, momentum=0.7, eps=1e-2),
    "average of all batches": lambda: nn.BatchNorm2d(3, momentum=None),
    "without weights": lambda: nn.BatchNorm2d(3, affine=False),
    "without running statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
}


def accelerated(module):
    module = copy.deepcopy(module)
    module.__class__ = BatchNorm2d
    return module


@pytest.mark.parametrize("name", MODULES)
def test_modules_do_what_theirs_do(name):
    torch.manual_seed(0)
    dense = MODULES[name]()
    sparse = accelerated(dense)
    for step in range(4):
        if step == 2:
            dense.eval(), sparse.eval()
        x = 5 * random(6, 3, 4, 5, seed=step) + 2
        given_ = [x.clone().requires_grad_(), images_last(x).requires_grad_()]
        dense_y, sparse_y = dense(given_[0]), sparse(given_[1])
        torch.testing.assert_close(sparse_y, dense_y)
        dy = random(*x.shape, seed=9)
        dense_y.backward(dy), sparse_y.backward(dy)
        torch.testing.assert_close(given_[1].grad, given_[0].grad)
        for one, other in zip(sparse.state_dict().values(), dense.state_dict().values(), strict=True):
            torch.testing.assert_close(one, other)
        for one, other in zip(sparse.parameters(), dense.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
        if name != "average of all batches":
            assert is_images_last(sparse_y)


def test_statistics_that_are_frozen_stay_as_they_are():
    sparse = accelerated(nn.BatchNorm2d(3))
    sparse.track_running_stats = False
    before = copy.deepcopy(sparse.state_dict())
    dense = nn.BatchNorm2d(3)
    dense.track_running_stats = False
    x = random(6, 3, 4, 5, seed=0)
    torch.testing.assert_close(sparse(images_last(x)), dense(x))
    assert all(torch.equal(before[k], v) for k, v in sparse.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_are_pytorchs(dtype):
    x = images_last(random(6, 3, 4, 5, seed=0).to(dtype))
    module = nn.BatchNorm2d(3).to(dtype)
    assert torch.equal(accelerated(module)(x), module(x))


def test_channels_that_are_not_the_modules_are_refused():
    with pytest.raises(RuntimeError, match="running_mean"):
        accelerated(nn.BatchNorm2d(4))(images_last(random(6, 3, 4, 5, seed=0)))
