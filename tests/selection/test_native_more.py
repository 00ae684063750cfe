"""The kernels' other passes, beside what they must do: draw scores, zero what is pruned, look for inf and NaN."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_native_passes import BUILDS, CASES, all_scores, one_layer, running

from fggp import native
from fggp.masks.masks import zero_pruned
from fggp.scores import gradient, largest, saliency
from fggp.selection import native_passes, passes
from helpers import bits, identical
from tensors import DTYPES, laid_out, layouts, shapes, values


@given(share=st.sampled_from([0.0, 0.01, 0.3, 1.0]), **CASES)
def test_what_is_drawn_is_there(build, threads, case, score, among, share):
    layers, marks = case
    scores = all_scores(layers, marks, score, among)
    there = sorted(scores[~scores.isnan()].tolist())
    with running(build, threads):
        found = native_passes.draw(layers, marks, score, among, share)
    assert len(found) <= sum(math.ceil(share * len(layer)) for layer in layers)
    assert set(found.tolist()) <= set(there)


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.fggp_cpu().decode())
def test_the_same_is_drawn_as_without_kernels(build):
    layers = [one_layer(5000), one_layer(70), one_layer(100_000, dtype=torch.bfloat16)]
    marks = [torch.randint(0, 3, (len(layer),)).to(torch.uint8) for layer in layers]
    for score in (gradient, largest(saliency)):
        with running(build, 3):
            found = native_passes.draw(layers, marks, score, 1, 0.05)
        with mock.patch.object(native, "load", side_effect=native.KernelsMissingError("none here")):
            expected = passes.draw(layers, marks, score, 1, 0.05)
        assert identical(found.sort().values, expected.float().sort().values)


@st.composite
def tensors_and_masks(draw):
    """A tensor of any dtype and a mask, laid out alike or each in its own way, with gaps or without."""
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
    with running(build, threads):
        if missing:
            native.load.side_effect = native.KernelsMissingError("none here")
        zero_pruned([t for t, _ in pairs], [m for _, m in pairs])
    assert all(torch.equal(bits(t), e) for (t, _), e in zip(pairs, expected, strict=True))
    assert identical([m for _, m in pairs], given_masks)


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.fggp_cpu().decode())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeroing_much(build, dtype):
    tensor, mask = torch.randn(700, 999).to(dtype), torch.rand(700, 999) < 0.4
    expected = torch.where(mask, bits(tensor), 0)
    with running(build, 3):
        assert native_passes.zero([tensor], [mask]) == []
    assert torch.equal(bits(tensor), expected)


def test_what_is_left_to_pytorch():
    tensor = torch.randn(6, 8)
    mask = torch.ones(6, 8, dtype=torch.bool)
    others = [(tensor[:, ::2], mask[:, ::2]), (tensor.T, mask.view(8, 6)), (tensor.to("meta"), mask.to("meta"))]
    everything = [(tensor, mask), *others, (tensor.T, mask.T), (torch.nn.Parameter(tensor), mask)]
    assert native_passes.zero([t.detach() for t, _ in everything], [m for _, m in everything]) == [1, 2, 3]


@given(
    st.lists(st.tuples(shapes(), st.sampled_from(DTYPES)), max_size=4),
    st.sampled_from([0.0, math.inf, -math.inf, math.nan]),
    st.sampled_from(BUILDS),
    st.data(),
)
def test_whether_all_is_finite(kinds, odd, build, data):
    found = [data.draw(layouts(data.draw(values(shape, dtype)))) for shape, dtype in kinds]
    if found:
        chosen = data.draw(st.sampled_from(found))
        chosen[tuple(data.draw(st.integers(0, n - 1)) for n in chosen.shape)] = odd
    expected = all(bool(t.isfinite().all()) for t in found)
    with running(build, 3):
        assert passes.finite(found) == expected
        known = native_passes.finite(found)
        assert known is None or known == expected
    with mock.patch.object(native, "load", side_effect=native.KernelsMissingError("none here")):
        assert passes.finite(found) == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_number_is_finite(dtype):
    tensor = torch.full((300_000,), torch.finfo(dtype).max, dtype=dtype)
    assert native_passes.finite([tensor]) is True
    assert passes.finite([tensor])
    for place in (0, 131_072, 299_999):
        other = tensor.clone()
        other[place] = -math.inf
        assert native_passes.finite([other]) is False
