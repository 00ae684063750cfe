"""Whether all elements of some tensors are finite, with kernels and without."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builds import every_build, running, without_kernels
from fggp.selection import native_passes, passes
from tensors import DTYPES, layouts, shapes, values

BUILDS = every_build()


@given(
    st.lists(st.tuples(shapes(), st.sampled_from(DTYPES)), max_size=4),
    st.sampled_from([0.0, math.inf, -math.inf, math.nan]),
    st.sampled_from(BUILDS),
    st.data(),
)
def test_one_value_that_is_not_finite_is_found(kinds, odd, build, data):
    found = [data.draw(layouts(data.draw(values(shape, dtype)))) for shape, dtype in kinds]
    if found:
        chosen = data.draw(st.sampled_from(found))
        chosen[tuple(data.draw(st.integers(0, n - 1)) for n in chosen.shape)] = odd
    expected = all(bool(t.isfinite().all()) for t in found)
    with running(build, 3):
        assert passes.all_finite(found) == expected
        known = native_passes.all_finite(found)
        assert known is None or known == expected
    with without_kernels():
        assert passes.all_finite(found) == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_number_is_finite(dtype):
    tensor = torch.full((300_000,), torch.finfo(dtype).max, dtype=dtype)
    assert native_passes.all_finite([tensor]) is True
    assert passes.all_finite([tensor])
    for place in (0, 131_072, 299_999):
        other = tensor.clone()
        other[place] = -math.inf
        assert native_passes.all_finite([other]) is False
