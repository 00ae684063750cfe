"""The kernels' passes over weights against PyTorch operations: every build, equal to the bit."""

import math
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from builds import build_name, running, without_kernels
from fggp import TopK
from fggp.scores import Formula, Quantity, Score, gradient, largest, magnitude, random, saliency
from fggp.selection import chains, native_passes
from helpers import identical
from native_cases import BUILDS, CASES, SCORES, all_scores, layers_and_marks, one_layer


def bounds(data, scores, count):
    """Thresholds in ascending order: scores of the weights, their neighbouring floats, and values beyond all scores."""
    some = scores[~scores.isnan()]
    some = some[:: max(1, len(some) // 5)].tolist()
    below, above = (torch.tensor(some).nextafter(torch.tensor(s * math.inf)).tolist() for s in (-1, 1))
    return sorted(
        data.draw(
            st.lists(
                st.sampled_from([*some, *below, *above, 0.0, -0.0, 1.0, -1.0, math.inf, -math.inf]),
                min_size=count,
                max_size=count,
            )
        )
    )


@given(data=st.data(), buffer_size=st.sampled_from([1, native_passes.MIN_BUFFER_SIZE]), **CASES)
def test_a_pass_counts_and_gathers(data, build, threads, case, score, eligible_mark, buffer_size):
    layers, marks = case
    scores = all_scores(layers, marks, score, eligible_mark)
    a, b = bounds(data, scores, 2)
    before = [m.clone() for m in marks]
    with running(build, threads), mock.patch.object(native_passes, "MIN_BUFFER_SIZE", buffer_size):
        assert native_passes.supports(layers, score)
        counts, inside = native_passes.count_and_gather(layers, marks, score, eligible_mark, a, b)
    between = scores[(scores > a) & (scores < b)]
    at_b = 0 if a == b else int((scores == b).sum())
    assert counts == (int((scores < a).sum()), int((scores == a).sum()), len(between), at_b)
    assert identical(inside.sort().values, between.sort().values)
    assert identical(marks, before)


@given(data=st.data(), equal=st.sampled_from([0, 1, 2]), **CASES)
def test_applying_a_threshold_marks(data, build, threads, case, score, eligible_mark, equal):
    layers, marks = case
    [value] = bounds(data, all_scores(layers, marks, score, eligible_mark), 1)
    expected = []
    for layer, mark in zip(layers, marks, strict=True):
        scores = score.of(layer.block(0, len(layer)))
        new = torch.where(scores < value, 1, torch.where(scores == value, equal, 0)).to(torch.uint8)
        expected.append(torch.where(mark == eligible_mark, new, mark))
    with running(build, threads):
        native_passes.apply_threshold(layers, marks, score, eligible_mark, value, equal)
    assert identical(marks, expected)


@given(share=st.sampled_from([0.0, 0.01, 0.3, 1.0]), **CASES)
def test_a_sample_is_drawn_from_the_scores_of_marked_weights(build, threads, case, score, eligible_mark, share):
    layers, marks = case
    scores = all_scores(layers, marks, score, eligible_mark)
    with running(build, threads):
        found = native_passes.sample_scores(layers, marks, score, eligible_mark, share)
    assert len(found) <= sum(math.ceil(share * len(layer)) for layer in layers)
    assert set(found.tolist()) <= set(scores[~scores.isnan()].tolist())


@pytest.mark.parametrize("build", BUILDS, ids=build_name)
def test_kernels_draw_at_multiples_of_the_golden_ratio(build):
    layers = [one_layer(5000), one_layer(70), one_layer(100_000, dtype=torch.bfloat16)]
    marks = [torch.randint(0, 3, (len(layer),)).to(torch.uint8) for layer in layers]
    for score in (gradient, largest(saliency)):
        with running(build, 3):
            found = native_passes.sample_scores(layers, marks, score, 1, 0.05)
        expected = []
        for layer, mark in zip(layers, marks, strict=True):
            points = [int(i * 0.6180339887498949 % 1 * len(layer)) for i in range(math.ceil(0.05 * len(layer)))]
            scores = score.of(layer.block(0, len(layer))).tolist()
            expected += [scores[i] for i in points if mark[i] == 1]
        assert sorted(found.tolist()) == sorted(expected)


@pytest.mark.parametrize("build", BUILDS, ids=build_name)
def test_a_pass_with_more_scores_than_its_buffer_holds(build):
    layer = one_layer(200_000)
    assert len(layer) > native_passes.MIN_BUFFER_SIZE
    marks = torch.ones(len(layer), dtype=torch.uint8)
    with running(build, 2):
        for a, b in ((-math.inf, math.inf), (-1.0, 9.0)):
            counts, inside = native_passes.count_and_gather([layer], [marks], magnitude, 1, a, b)
            assert counts == (0, 0, len(layer), 0)
            assert identical(inside.sort().values, layer.weight.abs().sort().values)


def test_layers_that_the_kernels_read():
    layer = one_layer()
    for score in SCORES:
        assert native_passes.supports([layer, replace(layer, grad=None), one_layer(dtype=torch.bfloat16)], score)
    assert native_passes.supports([], magnitude)
    # Gradients that a score does not read may be anything.
    for other in ({"grad_scale": 2.0}, {"grad": torch.randn(40, dtype=torch.bfloat16)}, {"grad": torch.randn(80)[::2]}):
        assert native_passes.supports([replace(layer, **other)], magnitude)
        assert not native_passes.supports([replace(layer, **other)], gradient)
        assert not native_passes.supports([layer, replace(layer, **other)], largest(saliency))


class OtherStorage(torch.Tensor):
    """A subclass, which may keep its values anywhere."""


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(80)[::2],
        torch.randn(40, dtype=torch.float16),
        torch.randn(40, dtype=torch.float64),
        torch.randn(40, device="meta"),
        torch.randn(40).as_subclass(OtherStorage),
    ],
    ids=["strided", "float16", "float64", "meta", "subclass"],
)
def test_layers_that_the_kernels_do_not_read(weight):
    assert not native_passes.supports([one_layer(), replace(one_layer(), weight=weight, grad=None)], magnitude)


def test_scores_that_the_kernels_do_not_know():
    layer = one_layer()
    for score in (random(0, 1), largest(random(0, 1)), Score("signed", lambda block: block.weight)):
        assert score.formula is None
        assert not native_passes.supports([layer], score)
    assert not native_passes.supports([replace(layer, dtype=torch.float64)], magnitude)


def test_a_score_has_the_formula_of_its_function():
    assert magnitude.formula == Formula(Quantity.WEIGHT)
    assert largest(magnitude).formula == Formula(Quantity.WEIGHT, negated=True)
    assert largest(largest(gradient)).formula == gradient.formula
    assert largest(gradient).ties.formula == Formula(Quantity.WEIGHT, negated=True)
    assert replace(magnitude, name="size").formula == magnitude.formula
    assert replace(magnitude, of=lambda block: block.weight).formula is None
    assert Score("mine", lambda block: magnitude.of(block)).formula is None


@pytest.mark.parametrize(
    "marks",
    [torch.ones(39, dtype=torch.uint8), torch.ones(40), torch.ones(80, dtype=torch.uint8)[::2]],
    ids=["short", "float", "strided"],
)
def test_marks_of_another_dtype_shape_or_layout_are_refused(marks):
    with pytest.raises(ValueError, match=r"marks of 'w' must be contiguous uint8 \[40\] on the CPU, not torch"):
        native_passes.apply_threshold([one_layer()], [marks], magnitude, 1, 0.5, 1)
    with pytest.raises(ValueError, match="marks of 'w'"):
        native_passes.count_and_gather([one_layer()], [marks], magnitude, 1, 0.5, 0.6)


@given(case=layers_and_marks(), share=st.floats(0, 1), score=st.sampled_from(SCORES))
@example(case=([one_layer(3000)], [torch.ones(3000, dtype=torch.uint8)]), share=0.3, score=gradient)
def test_selection_is_the_same_without_kernels(case, share, score):
    layers, marks = case
    active = []
    for layer, mark in zip(layers, marks, strict=True):
        nan = layer.weight.isnan() | score.of(layer.block(0, len(layer))).isnan()
        active.append((mark == 1) & ~nan)
    count = sum(int(a.sum()) for a in active)
    chain = [TopK(score, round(share * count)), TopK(magnitude, round(share * share * count))]
    ours = chains.run_chain(layers, active, chain) if layers else []
    with without_kernels():
        assert not native_passes.supports(layers, score)
        assert not layers or identical(chains.run_chain(layers, active, chain), ours)
