"""Norms and softmax, against PyTorch in float64."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.nn import functional as F

from networks import Refused, run_one

INF, NAN = float("inf"), float("nan")
SIZES = st.sampled_from([1, 2, 3, 5, 8, 17, 31, 64, 130])
SHAPES = st.lists(SIZES, min_size=1, max_size=4).filter(lambda s: torch.Size(s).numel() < 300_000)
THREADS = st.sampled_from([1, 2])


def assert_close(found: Tensor, exact: Tensor, scale: float = 1.0) -> None:
    """Within 1e-6 of the numbers, or of `scale` where they are smaller."""
    assert found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6 * scale, equal_nan=True)


def maybe(present: bool, shape: Any) -> Tensor | None:
    return torch.randn(shape) if present else None


def double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


@given(SHAPES, st.data(), st.booleans(), st.booleans(), st.sampled_from([0.0, 100.0, -1e4]), THREADS)
def test_layer_norm(shape, data, weighted, biased, mean, threads):
    dims = data.draw(st.integers(1, len(shape)))
    row = shape[-dims:]
    x, weight, bias = torch.randn(shape) + mean, maybe(weighted, row), maybe(biased, row)
    found = run_one("layer_norm", [x, weight, bias], threads=threads, dims=dims, epsilon=1e-5)
    assert_close(found, F.layer_norm(x.double(), row, double(weight), double(bias), 1e-5))


@given(SHAPES, st.data(), st.booleans(), THREADS)
def test_rms_norm(shape, data, weighted, threads):
    dims = data.draw(st.integers(1, len(shape)))
    row = shape[-dims:]
    x, weight = torch.randn(shape) * 10, maybe(weighted, row)
    found = run_one("rms_norm", [x, weight], threads=threads, dims=dims, epsilon=1e-6)
    assert_close(found, F.rms_norm(x.double(), row, double(weight), 1e-6))


@given(
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 5),
    st.lists(SIZES, max_size=2),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 1000.0]),
    THREADS,
)
def test_group_norm(batch, groups, each, area, weighted, biased, mean, threads):
    channels = groups * each
    x = torch.randn(batch, channels, *area) + mean
    weight, bias = maybe(weighted, channels), maybe(biased, channels)
    found = run_one("group_norm", [x, weight, bias], threads=threads, groups=groups, epsilon=1e-5)
    if batch * each * torch.Size(area).numel() == 1:
        return  # PyTorch refuses a single number in all
    assert_close(found, F.group_norm(x.double(), groups, double(weight), double(bias), 1e-5))


def test_a_mean_that_is_large_beside_the_deviation():
    x = torch.randn(4, 768).double().mul(0.01).add(500).float()
    found = run_one("layer_norm", [x], dims=1, epsilon=0)
    assert_close(found, F.layer_norm(x.double(), [768], eps=0))
    one_outlier = torch.cat([torch.tensor([1e6]), torch.randn(767)])
    found = run_one("layer_norm", [one_outlier], dims=1, epsilon=0)
    assert_close(found, F.layer_norm(one_outlier.double(), [768], eps=0))


@given(SHAPES, st.data(), st.booleans(), st.sampled_from([1.0, 30.0]), THREADS)
def test_softmax(shape, data, log, scale, threads):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = torch.randn(shape) * scale
    found = run_one("softmax", [x], threads=threads, dim=dim, log=log)
    expected = (F.log_softmax if log else F.softmax)(x.double(), dim)
    assert_close(found, expected, 1.0 if log else 1e-6)


def test_softmax_of_many():
    x = torch.randn(2, 50_257) * 4
    assert_close(run_one("softmax", [x], dim=-1), x.double().softmax(-1), 1e-6)
    assert_close(run_one("softmax", [x], dim=-1, log=True), x.double().log_softmax(-1), 1e-6)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("count", [3, 16, 37])
def test_softmax_of_what_is_not_finite(dim, log, count):
    rows = torch.randn(7, count)
    rows[1, 0] = -INF
    rows[2, 1] = INF
    rows[3, count - 1] = NAN
    rows[4] = -INF
    rows[5] = NAN
    rows[6] = 3e38
    x = rows if dim else rows.T.contiguous()
    found = run_one("softmax", [x], dim=dim, log=log)
    expected = (F.log_softmax if log else F.softmax)(x.double(), dim)
    assert_close(found, expected)
    if not log:  # what is masked takes no part at all
        assert (found if dim else found.T)[1, 0] == 0


def test_softmax_of_a_number():
    assert run_one("softmax", [torch.tensor(5.0)], dim=-1).item() == 1


@pytest.mark.parametrize("shape", [[0, 4], [4, 0], [2, 0, 3]])
def test_tensors_without_elements(shape):
    x = torch.zeros(shape)
    assert run_one("softmax", [x], dim=1).shape == x.shape
    assert run_one("layer_norm", [x], dims=1, epsilon=1e-5).shape == x.shape
    assert run_one("group_norm", [x], groups=2, epsilon=1e-5).shape == x.shape


X = torch.zeros(2, 6)
WRONG: list[tuple[str, list[Tensor | None], dict[str, Any], str]] = [
    ("layer_norm", [X], {"dims": 0, "epsilon": 0}, '"dims" is 0; it must be from 1 to the number of dimensions, 2'),
    ("layer_norm", [X], {"dims": 2**62, "epsilon": 0}, '"dims" is 4611686018427387904'),
    ("layer_norm", [torch.tensor(1.0)], {"dims": 1, "epsilon": 0}, "the number of dimensions, 0"),
    ("layer_norm", [X], {"dims": 1, "epsilon": -1}, '"epsilon" is -1.0'),
    ("layer_norm", [X], {"dims": 1, "epsilon": "nan"}, '"epsilon" is nan'),
    ("layer_norm", [X, X], {"dims": 1, "epsilon": 0}, "its weight is F32 [2, 6], and must be F32 [6]"),
    ("layer_norm", [X, None, X], {"dims": 1, "epsilon": 0}, "its bias is F32 [2, 6], and must be F32 [6]"),
    ("layer_norm", [X > 0], {"dims": 1, "epsilon": 0}, "its input is BOOL [2, 6], and must be F32"),
    ("rms_norm", [X, None, None], {"dims": 1, "epsilon": 0}, "it reads 1 or more tensors"),
    ("rms_norm", [X], {"dims": 1}, 'it has no "epsilon"'),
    ("group_norm", [X], {"groups": 4, "epsilon": 0}, '"groups" is 4; it must divide the 6 channels'),
    ("group_norm", [X], {"groups": 0, "epsilon": 0}, '"groups" is 0'),
    ("group_norm", [torch.zeros(6)], {"groups": 1, "epsilon": 0}, "and must have 2 dimensions or more"),
    ("group_norm", [X, torch.zeros(2)], {"groups": 2, "epsilon": 0}, "its weight is F32 [2], and must be F32 [6]"),
    ("softmax", [X], {"dim": 2}, '"dim" is 2, and the tensor has 2 dimensions'),
    ("softmax", [torch.tensor(1.0)], {"dim": 1}, '"dim" is 1, and the tensor has 1 dimensions'),
    ("softmax", [X], {"dim": 0, "log": 1}, '"log" is not true or false'),
    ("softmax", [None], {"dim": 0}, "it reads 1 tensor"),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "message"), WRONG)
def test_what_is_wrong_is_named(op, inputs, attributes, message):
    with pytest.raises(Refused) as refused:
        run_one(op, inputs, **attributes)
    assert message in str(refused.value)
