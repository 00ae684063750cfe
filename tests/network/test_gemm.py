"""The dense matrix product, through `linear` and `matmul`: sizes around those of its tiles, chunks and blocks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from networks import run_one


def exact(result, a, b):
    """Whether a product is within rounding of the float64 one: about an ulp for each chunk of the sum, at most."""
    expected = a.double() @ b.double()
    magnitude = a.double().abs() @ b.double().abs()
    assert result.shape == expected.shape
    assert ((result.double() - expected).abs() <= 1e-6 * magnitude + 1e-30).all()


# One more and one fewer than a tile of each build, a panel, a chunk of the depth, and a few of them.
SIZES = st.one_of(st.integers(1, 40), st.sampled_from((47, 48, 49, 63, 64, 65, 97, 127, 129, 200)))
DEPTHS = st.one_of(st.integers(1, 40), st.sampled_from((255, 256, 257, 511, 513, 700)))


@given(
    rows=SIZES,
    columns=SIZES,
    depth=DEPTHS,
    transposed=st.tuples(st.booleans(), st.booleans()),
    constant=st.sampled_from(((), (0,), (1,), (0, 1))),
    threads=st.sampled_from((1, 2, 3)),
)
def test_sizes(rows, columns, depth, transposed, constant, threads):
    torch.manual_seed(rows * 1000 + columns)
    a, b = torch.randn(rows, depth), torch.randn(depth, columns)
    stored_a = a.t().contiguous() if transposed[0] else a
    stored_b = b.t().contiguous() if transposed[1] else b
    result = run_one(
        "matmul",
        [stored_a, stored_b],
        constant,
        threads=threads,
        transpose_a=transposed[0],
        transpose_b=transposed[1],
    )
    exact(result, a, b)


@pytest.mark.parametrize("constant", [(), (0,), (1,)])
@pytest.mark.parametrize(
    ("rows", "columns", "depth"),
    [(1500, 70, 300), (70, 1500, 300), (300, 300, 1100), (1, 2000, 513), (2000, 1, 513), (5, 900, 700)],
)
def test_several_blocks(rows, columns, depth, constant):
    torch.manual_seed(0)
    a, b = torch.randn(rows, depth), torch.randn(depth, columns)
    exact(run_one("matmul", [a, b], constant), a, b)
    exact(run_one("matmul", [a, b.t().contiguous()], constant, transpose_b=True), a, b)


@given(
    rows=SIZES,
    columns=SIZES,
    depth=DEPTHS,
    bias=st.booleans(),
    residual=st.booleans(),
    constant=st.booleans(),
    threads=st.sampled_from((1, 2)),
)
def test_bias_and_residual(rows, columns, depth, bias, residual, constant, threads):
    torch.manual_seed(rows * 1000 + columns)
    x, weight = torch.randn(rows, depth), torch.randn(columns, depth)
    ones = torch.ones(rows, 1)
    shift, rest = torch.randn(columns), torch.randn(rows, columns)
    left, right = [x], [weight]
    if bias:
        left, right = [*left, ones], [*right, shift[:, None]]
    result = run_one(
        "linear",
        [x, weight, shift if bias else None, rest if residual else None],
        [i for i in (1, 2) if constant and (i == 1 or bias)],
        threads=threads,
        activation=["clamp", "-inf", 1.0],
    )
    expected = torch.cat(left, 1).double() @ torch.cat(right, 1).double().t() + (rest if residual else 0)
    magnitude = x.double().abs() @ weight.double().abs().t() + 1
    assert ((result.double() - expected.clamp(max=1.0)).abs() <= 1e-6 * magnitude).all()


@pytest.mark.parametrize("place", ["a", "b"])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_nan_and_infinity_stay_in_their_row_or_column(rows, place):
    for value in (torch.nan, torch.inf):
        a, b = torch.ones(rows, 37), torch.ones(37, 43)
        (a if place == "a" else b)[-1, -1] = value
        for flipped in (False, True):
            result = run_one("matmul", [a, b.t().contiguous() if flipped else b], transpose_b=flipped)
            assert torch.equal(result.isfinite(), (a @ b).isfinite())
            assert torch.equal(result.isnan(), (a @ b).isnan())
