"""The kernels' passes over weights against PyTorch operations on all of them: every build, the same to the bit."""

import math
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from builds import every_build
from fggp import TopK, native
from fggp.scores import Formula, Quantity, Score, gradient, largest, magnitude, random, saliency
from fggp.selection import chains, native_passes
from fggp.weights.layers import Layer, Layout
from helpers import identical
from tensors import levels

BUILDS = every_build()
SCORES = [s for score in (magnitude, gradient, saliency) for s in (score, largest(score))]
# Around a vector, a chunk (4,096) and a task (65,536) of the kernels' own.
SIZES = [0, 1, 3, 7, 8, 9, 15, 16, 17, 33, 100, 4095, 4096, 4097, 4103, 8192, 65535, 65536, 65537, 70001]
OFFSETS = st.integers(0, 5)


def drawn(size, dtype, kind, seed):
    """Values of a kind: all zero, from a few levels with infinities and NaN, or (nearly) all different."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "zero":
        return torch.zeros(size, dtype=dtype)
    if kind == "random":
        return torch.randn(size, generator=generator).to(dtype)
    some = torch.tensor([*levels(dtype, infinite=True), math.nan], dtype=torch.float64).to(dtype)
    return some[torch.randint(len(some), (size,), generator=generator)]


def at_offset(tensor, offset):
    """The same values, so many elements behind the start of an allocation."""
    storage = torch.empty(offset + len(tensor), dtype=tensor.dtype)
    return storage[offset:].copy_(tensor)


@st.composite
def tensors(draw, size, dtype):
    """Values of any kind in an allocation that ends where they do: the sanitizers see what is read behind."""
    kind, seed, offset = draw(st.sampled_from(["zero", "levels", "random"])), draw(st.integers(0, 99)), draw(OFFSETS)
    return at_offset(drawn(size, dtype, kind, seed), offset)


@st.composite
def given_marks(draw, size):
    """All of one kind, or in some proportion; 1 and now and then a 0 or 2."""
    shares = draw(st.sampled_from([(0, 1, 0), (1, 1, 1), (1, 100, 1), (1000, 1, 0), (1, 0, 0), (1, 0, 1)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    marks = torch.multinomial(torch.tensor(shares).float(), size + 1, replacement=True, generator=generator)[:size]
    return at_offset(marks.to(torch.uint8), draw(OFFSETS))


@st.composite
def given_layers(draw):
    """Layers and their marks."""
    layers, marks = [], []
    for i in range(draw(st.integers(0, 4))):
        size, dtype = draw(st.sampled_from(SIZES)), draw(st.sampled_from([torch.float32, torch.bfloat16]))
        weight, grad = draw(tensors(size, dtype)), draw(st.none() | tensors(size, dtype))
        layers.append(Layer(f"{i}.weight", Layout.of_mask(weight), weight, grad))
        marks.append(draw(given_marks(size)))
    return layers, marks


CASES = {
    "build": st.sampled_from(BUILDS),
    "threads": st.sampled_from([1, 3]),
    "case": given_layers(),
    "score": st.sampled_from(SCORES),
    "among": st.sampled_from([0, 1, 2]),
}


@contextmanager
def running(build, threads):
    """Have the passes made by a build on so many threads."""
    with (
        mock.patch.object(native, "load", return_value=build),
        mock.patch("torch.get_num_threads", return_value=threads),
    ):
        yield


def all_scores(layers, marks, score, among):
    """The scores of the members, one after the other."""
    members = [score.of(la.block(0, len(la)))[m == among] for la, m in zip(layers, marks, strict=True)]
    return torch.cat([torch.empty(0), *members])


def bounds(data, scores, count):
    """Places for a cut, in order: scores that are there, their neighbours, and what is beyond all."""
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


@given(data=st.data(), room=st.sampled_from([1, native_passes.MIN_BUFFER]), **CASES)
def test_a_survey_counts_and_gathers(data, build, threads, case, score, among, room):
    layers, marks = case
    scores = all_scores(layers, marks, score, among)
    a, b = bounds(data, scores, 2)
    before = [m.clone() for m in marks]
    with running(build, threads), mock.patch.object(native_passes, "MIN_BUFFER", room):
        assert native_passes.supports(layers, score)
        counts, inside = native_passes.survey(layers, marks, score, among, a, b)
    between = scores[(scores > a) & (scores < b)]
    at_b = 0 if a == b else int((scores == b).sum())
    assert counts == (int((scores < a).sum()), int((scores == a).sum()), len(between), at_b)
    assert identical(inside.sort().values, between.sort().values)
    assert identical(marks, before)


@given(data=st.data(), equal=st.sampled_from([0, 1, 2]), **CASES)
def test_a_cut_marks(data, build, threads, case, score, among, equal):
    layers, marks = case
    [value] = bounds(data, all_scores(layers, marks, score, among), 1)
    expected = []
    for layer, mark in zip(layers, marks, strict=True):
        scores = score.of(layer.block(0, len(layer)))
        new = torch.where(scores < value, 1, torch.where(scores == value, equal, 0)).to(torch.uint8)
        expected.append(torch.where(mark == among, new, mark))
    with running(build, threads):
        native_passes.cut(layers, marks, score, among, value, equal)
    assert identical(marks, expected)


def one_layer(size=40, dtype=torch.float32, **changes):
    weight, grad = torch.randn(size, dtype=dtype), torch.randn(size, dtype=dtype)
    return replace(Layer("w", Layout.of_mask(weight), weight, grad), **changes)


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.fggp_cpu().decode())
def test_all_of_much_is_gathered(build):
    layer = one_layer(200_000)
    assert len(layer) > native_passes.MIN_BUFFER
    marks = torch.ones(len(layer), dtype=torch.uint8)
    with running(build, 2):
        for a, b in ((-math.inf, math.inf), (-1.0, 9.0)):  # there is no room at first
            counts, inside = native_passes.survey([layer], [marks], magnitude, 1, a, b)
            assert counts == (0, 0, len(layer), 0)
            assert identical(inside.sort().values, layer.weight.abs().sort().values)


def test_what_the_kernels_read():
    layer = one_layer()
    for score in SCORES:
        assert native_passes.supports([layer, replace(layer, grad=None), one_layer(dtype=torch.bfloat16)], score)
    assert native_passes.supports([], magnitude)
    # Of their gradients nothing is asked where they are not read.
    for other in ({"grad_scale": 2.0}, {"grad": torch.randn(40, dtype=torch.bfloat16)}, {"grad": torch.randn(80)[::2]}):
        assert native_passes.supports([replace(layer, **other)], magnitude)
        assert not native_passes.supports([replace(layer, **other)], gradient)
        assert not native_passes.supports([layer, replace(layer, **other)], largest(saliency))


class Elsewhere(torch.Tensor):
    """A subclass may keep its values anywhere."""


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(80)[::2],
        torch.randn(40, dtype=torch.float16),
        torch.randn(40, dtype=torch.float64),
        torch.randn(40, device="meta"),
        torch.randn(40).as_subclass(Elsewhere),
    ],
    ids=["strided", "float16", "float64", "meta", "subclass"],
)
def test_what_the_kernels_do_not_read(weight):
    assert not native_passes.supports([one_layer(), replace(one_layer(), weight=weight, grad=None)], magnitude)


def test_scores_that_the_kernels_do_not_know():
    layer = one_layer()
    for score in (random(0, 1), largest(random(0, 1)), Score("signed", lambda block: block.weight)):
        assert score.formula is None
        assert not native_passes.supports([layer], score)
    assert not native_passes.supports([replace(layer, dtype=torch.float64)], magnitude)


def test_a_formula_is_that_of_the_function():
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
def test_other_marks_are_refused(marks):
    with pytest.raises(ValueError, match=r"marks of 'w' must be uint8 \[40\] on the CPU, not torch"):
        native_passes.cut([one_layer()], [marks], magnitude, 1, 0.5, 1)
    with pytest.raises(ValueError, match="marks of 'w'"):
        native_passes.survey([one_layer()], [marks], magnitude, 1, 0.5, 0.6)


@given(case=given_layers(), share=st.floats(0, 1), score=st.sampled_from(SCORES))
@example(case=([one_layer(3000)], [torch.ones(3000, dtype=torch.uint8)]), share=0.3, score=gradient)
def test_without_kernels_the_same_is_selected(case, share, score):
    layers, marks = case
    active = []
    for layer, mark in zip(layers, marks, strict=True):
        nan = layer.weight.isnan() | score.of(layer.block(0, len(layer))).isnan()
        active.append((mark == 1) & ~nan)
    count = sum(int(a.sum()) for a in active)
    chain = [TopK(score, round(share * count)), TopK(magnitude, round(share * share * count))]
    ours = chains.run_chain(layers, active, chain) if layers else []
    with mock.patch.object(native, "load", side_effect=native.KernelsMissingError("none here")):
        assert not native_passes.supports(layers, score)
        assert not layers or identical(chains.run_chain(layers, active, chain), ours)


def test_nothing_is_loaded_before_it_is_needed():
    code = "import fggp; from fggp import native; raise SystemExit(native.load.cache_info().currsize)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_all_builds_of_this_processor_are_tested():
    assert [build.fggp_cpu().decode() for build in BUILDS] == list(native.build_names())


def test_kernels_of_another_version_are_refused(tmp_path, monkeypatch):
    path = next(native.builds())
    monkeypatch.setattr(native, "INTERFACE", native.INTERFACE + 1)
    with pytest.raises(native.KernelsMissingError, match="another version"):
        native.open_library(path)
    (tmp_path / "libfggp_x.so").write_bytes(b"no library")
    with pytest.raises(native.KernelsMissingError, match="cannot be loaded"):
        native.open_library(tmp_path / "libfggp_x.so")


def test_where_none_are_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("fggp.__path__", [str(tmp_path)])
    with pytest.raises(native.KernelsMissingError, match="installed without its kernels"):
        native.load.__wrapped__()
