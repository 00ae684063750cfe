"""Reductions, running sums and the largest numbers, against PyTorch."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from networks import Refused, run_one

INF, NAN = float("inf"), float("nan")
SIZES = st.sampled_from([1, 2, 3, 5, 17, 64, 300])
SHAPES = st.lists(SIZES, min_size=1, max_size=5).filter(lambda s: torch.Size(s).numel() < 200_000)
THREADS = st.sampled_from([1, 2])
DTYPES = st.sampled_from([torch.float32, torch.int64, torch.bool])


def made(shape: list[int], dtype: torch.dtype) -> Tensor:
    """Random numbers, with some that are equal."""
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    if dtype == torch.int64:
        return torch.randint(-40, 40, shape)
    return torch.randn(shape).mul(8).round().div(8) + 0.01


def equal(found: Tensor, expected: Tensor) -> bool:
    return (
        found.dtype == expected.dtype
        and torch.equal(found.isnan(), expected.isnan())
        and torch.equal(found.nan_to_num(), expected.nan_to_num())
    )


REDUCTIONS = {"max": torch.amax, "min": torch.amin, "any": torch.any, "all": torch.all}


@given(SHAPES, st.data(), DTYPES, st.booleans(), THREADS)
def test_sums_and_choices(shape, data, dtype, keep, threads):
    dims = data.draw(st.lists(st.integers(-len(shape), len(shape) - 1), unique_by=lambda d: d % len(shape), min_size=1))
    x = made(shape, dtype)
    for function, expected in REDUCTIONS.items():
        found = run_one("reduce", [x], threads=threads, function=function, dims=dims, keep=keep)
        assert equal(found, expected(x, tuple(dims), keepdim=keep))
    found = run_one("reduce", [x], threads=threads, function="sum", dims=dims, keep=keep)
    exact = x.double().sum(tuple(dims), keepdim=keep)
    if dtype == torch.float32:
        torch.testing.assert_close(found.double(), exact, rtol=1e-7, atol=1e-10)
        found = run_one("reduce", [x], threads=threads, function="mean", dims=dims, keep=keep)
        exact = x.double().mean(tuple(dims), keepdim=keep)
        torch.testing.assert_close(found.double(), exact, rtol=1e-7, atol=1e-10)
    else:
        assert equal(found, exact.long())


@given(SHAPES, st.data(), DTYPES, st.booleans(), THREADS)
def test_products(shape, data, dtype, keep, threads):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = made(shape, dtype)
    found = run_one("reduce", [x], threads=threads, function="prod", dims=[dim], keep=keep)
    if dtype == torch.float32:
        exact = x.double().prod(dim, keepdim=keep)
        torch.testing.assert_close(found, exact.float(), rtol=2e-7, atol=0)
    else:
        assert equal(found, x.prod(dim, keepdim=keep))


@given(SHAPES, st.data(), st.sampled_from([torch.float32, torch.int64]), st.booleans(), THREADS)
def test_positions(shape, data, dtype, keep, threads):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = made(shape, dtype)
    for function in ("argmax", "argmin"):
        found = run_one("reduce", [x], threads=threads, function=function, dims=[dim], keep=keep)
        best = x.amax(dim, keepdim=True) if function == "argmax" else x.amin(dim, keepdim=True)
        first = (x == best).long().argmax(dim, keepdim=keep)  # of zeros and ones, the first one
        assert equal(found, first)


@pytest.mark.parametrize("count", [3, 40, 200])
def test_reductions_with_nan_and_infinity(count):
    rows = torch.randn(6, count)
    rows[0, 1] = NAN
    rows[1, 1], rows[1, 2] = INF, -INF
    rows[2] = -INF
    rows[3] = INF
    rows[4, count - 1] = NAN
    rows[5, 0], rows[5, 2] = NAN, NAN
    for x, dim in ((rows, 1), (rows.T.contiguous(), 0)):
        for function in ("sum", "mean", "max", "min", "prod", "argmax", "argmin"):
            found = run_one("reduce", [x], function=function, dims=[dim])
            expected = getattr(torch, {"max": "amax", "min": "amin"}.get(function, function))(x, dim)
            chosen = expected.isfinite().logical_not() if function in ("sum", "mean", "prod") else slice(None)
            assert equal(found[chosen], expected[chosen]), function


def test_all_dimensions():
    x = torch.randn(3, 4, 5)
    assert run_one("reduce", [x], function="max", dims=[]).item() == x.max().item()
    assert run_one("reduce", [torch.tensor(3.0)], function="sum", dims=[]).item() == 3
    large = torch.rand(3_000_001)
    found = run_one("reduce", [large], function="mean", dims=[0])
    assert found.item() == pytest.approx(large.double().mean().item(), rel=1e-7)


def test_reductions_of_no_numbers():
    x = torch.zeros(3, 0, 4)
    for function, number in (("sum", 0.0), ("prod", 1.0), ("any", False), ("all", True)):
        found = run_one("reduce", [x], function=function, dims=[1])
        assert found.shape == (3, 4)
        assert (found == number).all()
    assert run_one("reduce", [x], function="mean", dims=[0, 1, 2]).isnan()
    assert run_one("reduce", [x], function="max", dims=[2]).shape == (3, 0)
    assert run_one("cumsum", [x], dim=1).shape == x.shape
    values, places = run_one("topk", [x], outputs=2, count=2, dim=0, largest=True)
    assert values.shape == places.shape == (2, 0, 4)


@given(SHAPES, st.data(), DTYPES, THREADS)
def test_running_sums(shape, data, dtype, threads):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = made(shape, dtype)
    found = run_one("cumsum", [x], threads=threads, dim=dim)
    if dtype == torch.float32:
        torch.testing.assert_close(found.double(), x.double().cumsum(dim), rtol=1e-7, atol=1e-10)
    else:
        assert equal(found, x.cumsum(dim))


def test_the_running_sum_of_a_number():
    assert run_one("cumsum", [torch.tensor(3)], dim=0).item() == 3


@given(SHAPES, st.data(), st.sampled_from([torch.float32, torch.int64]), st.booleans(), THREADS)
def test_the_largest_numbers(shape, data, dtype, largest, threads):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    count = data.draw(st.integers(0, shape[dim]))
    x = made(shape, dtype)
    values, places = run_one("topk", [x], threads=threads, outputs=2, count=count, dim=dim, largest=largest)
    expected = x.sort(dim=dim, descending=largest, stable=True)
    assert equal(values, expected.values.narrow(dim, 0, count))
    assert equal(places, expected.indices.narrow(dim, 0, count))


@pytest.mark.parametrize("largest", [False, True])
def test_the_largest_of_special_numbers(largest):
    x = torch.tensor([0.0, NAN, -0.0, INF, -INF, 2e-38, -2e-38, NAN, 0.0])
    values, places = run_one("topk", [x], outputs=2, count=9, dim=0, largest=largest)
    expected = x.sort(descending=largest, stable=True)
    assert equal(values, expected.values)
    assert equal(places, expected.indices)
    whole = torch.tensor([2**63 - 1, -(2**63), 0, -1])
    values, _ = run_one("topk", [whole], outputs=2, count=4, dim=0, largest=largest)
    assert equal(values, whole.sort(descending=largest).values)


X, TRUTH = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)
WRONG: list[tuple[str, Tensor, dict[str, Any], str]] = [
    ("reduce", X, {"function": "hop", "dims": [0]}, 'it has no function "hop"'),
    ("reduce", X, {"function": "sum"}, 'it has no "dims"'),
    ("reduce", X, {"function": "sum", "dims": [2]}, '"dims" is 2, and the tensor has 2 dimensions'),
    ("reduce", X, {"function": "sum", "dims": [0, -2]}, '"dims" has a dimension twice'),
    ("reduce", X, {"function": "argmax", "dims": [0, 1]}, '"dims" has 2 numbers; a position is along one dimension'),
    ("reduce", TRUTH, {"function": "argmax", "dims": [0]}, "its function argmax is not for BOOL"),
    ("reduce", X.long(), {"function": "mean", "dims": [0]}, "its function mean is not for I64"),
    ("reduce", torch.zeros(2, 0), {"function": "max", "dims": [1]}, "the dimension 1 of F32 [2, 0] has no numbers"),
    ("cumsum", X, {"dim": 2}, '"dim" is 2, and the tensor has 2 dimensions'),
    ("topk", X, {"outputs": 2, "count": 4, "dim": 1, "largest": True}, '"count" is 4; the dimension has 3 numbers'),
    ("topk", X, {"outputs": 2, "count": -1, "dim": 1, "largest": True}, '"count" is -1'),
    ("topk", X, {"outputs": 2, "count": 1, "dim": 1}, 'it has no "largest"'),
    ("topk", TRUTH, {"outputs": 2, "count": 1, "dim": 1, "largest": True}, "its input is F32 or I64, not BOOL [2, 3]"),
    ("topk", X, {"outputs": 1, "count": 1, "dim": 1, "largest": True}, "it has 1 outputs, not 2"),
]


@pytest.mark.parametrize(("op", "x", "attributes", "message"), WRONG)
def test_what_is_wrong_is_named(op, x, attributes, message):
    with pytest.raises(Refused) as refused:
        run_one(op, [x], **attributes)
    assert message in str(refused.value)
