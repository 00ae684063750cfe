"""The indices of a sample."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fggp.selection import bracket


def in_order(count, length):
    found = bracket.spread_indices(count, length, torch.device("cpu"))
    assert found.dtype == torch.int64
    assert len(found) == count
    return found.sort().values.tolist()


@given(st.data())
def test_indices_are_spread_evenly(data):
    """The gaps between multiples of the golden ratio have at most three lengths, none above 1.62 times the mean."""
    length = data.draw(st.one_of(st.integers(1, 5000), st.integers(1 << 20, 1 << 38)))
    count = data.draw(st.integers(1, min(length, 3000)))
    index = in_order(count, length)
    assert index[0] >= 0
    assert index[-1] < length
    gaps = [b - a for a, b in zip(index, [*index[1:], index[0] + length], strict=True)]
    rounding = 2 + length / (1 << 20)
    assert max(gaps) <= 1.9 * length / count + rounding
    assert min(gaps) >= 0.38 * length / count - rounding


@pytest.mark.parametrize("length", [1, 2, 1000, (1 << 31) - 1, 1 << 31, 1 << 38])
def test_indices_are_those_of_the_golden_ratio(length):
    index = bracket.spread_indices(500, length, torch.device("cpu")).tolist()
    golden = (5**0.5 - 1) / 2
    for i, found in enumerate(index):
        exact = i * golden % 1 * length
        assert -1 - length / (1 << 22) <= found - exact <= length / (1 << 22)
