"""The memory layout of masks."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fggp.weights.layers import Layout

SIZES = st.integers(1, 3)


@given(st.lists(SIZES, min_size=4, max_size=4), st.sampled_from([torch.contiguous_format, torch.channels_last]))
def test_a_mask_has_the_strides_of_its_weight_in_dimensions_of_one_too(shape, memory_format):
    weight = torch.randn(shape).contiguous(memory_format=memory_format)
    layout = Layout.of_mask(weight)
    marks = layout.flat(weight > 0)
    mask = layout.shaped(marks)
    assert mask.stride() == torch.empty_like(weight).stride()
    assert mask.data_ptr() == marks.data_ptr()
    assert torch.equal(mask, weight > 0)


@given(st.lists(SIZES, max_size=5))
def test_a_contiguous_weight_is_read_row_by_row(shape):
    assert Layout.of_mask(torch.empty(shape)).order == tuple(range(len(shape)))
