"""Zeroing to the bit, with kernels and without, in any memory layout."""

import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builds import build_name, every_build, running, without_kernels
from fggp.masks.zeroing import zero_pruned
from fggp.selection import native_passes
from helpers import bits, identical
from tensors import DTYPES, bool_masks, laid_out, layouts, shapes, values

BUILDS = every_build()


@given(bool_masks(), st.sampled_from(DTYPES), st.data())
def test_pruned_elements_are_plus_zero_and_every_other_bit_is_unchanged(mask, dtype, data):
    theta = data.draw(values(tuple(mask.shape), dtype, infinite=True))
    theta.view(-1)[data.draw(st.integers(0, mask.numel() - 1))] = data.draw(st.sampled_from([math.nan, -0.0, -1.0]))
    tensor = data.draw(layouts(theta))
    expected = torch.where(mask, bits(theta), 0)
    zero_pruned([tensor], [data.draw(layouts(mask))])
    assert torch.equal(bits(tensor), expected)


@st.composite
def tensors_and_masks(draw):
    """A tensor of any dtype and a mask, with the same memory layout or each with its own, with gaps or without."""
    shape, dtype = draw(shapes()), draw(st.sampled_from(DTYPES))
    tensor = draw(values(shape, dtype, infinite=True))
    tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from([math.nan, -0.0, -1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    mask = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    if draw(st.booleans()):
        order = tuple(draw(st.permutations(range(len(shape)))))
        return laid_out(tensor, order, gaps=False), laid_out(mask, order, gaps=False)
    return draw(layouts(tensor)), draw(layouts(mask))


@given(st.lists(tensors_and_masks(), max_size=4), st.sampled_from(BUILDS), st.sampled_from([1, 3]), st.booleans())
def test_zeroing_with_kernels_and_without(pairs, build, threads, missing):
    expected = [torch.where(mask, bits(tensor), 0) for tensor, mask in pairs]
    given_masks = [mask.clone() for _, mask in pairs]
    with running(build, threads), without_kernels() if missing else nullcontext():
        zero_pruned([t for t, _ in pairs], [m for _, m in pairs])
    assert all(torch.equal(bits(t), e) for (t, _), e in zip(pairs, expected, strict=True))
    assert identical([m for _, m in pairs], given_masks)


@pytest.mark.parametrize("build", BUILDS, ids=build_name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeroing_more_than_one_chunk_of_the_kernels(build, dtype):
    tensor, mask = torch.randn(700, 999).to(dtype), torch.rand(700, 999) < 0.4
    expected = torch.where(mask, bits(tensor), 0)
    with running(build, 3):
        assert native_passes.zero([tensor], [mask]) == []
    assert torch.equal(bits(tensor), expected)


def test_tensors_that_the_kernels_leave_unchanged():
    tensor = torch.randn(6, 8)
    mask = torch.ones(6, 8, dtype=torch.bool)
    others = [(tensor[:, ::2], mask[:, ::2]), (tensor.T, mask.view(8, 6)), (tensor.to("meta"), mask.to("meta"))]
    everything = [(tensor, mask), *others, (tensor.T, mask.T), (torch.nn.Parameter(tensor), mask)]
    assert native_passes.zero([t.detach() for t, _ in everything], [m for _, m in everything]) == [1, 2, 3]
