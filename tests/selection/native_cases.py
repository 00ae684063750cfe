"""Layers, marks and scores for tests of the kernels' passes."""

import math
from dataclasses import replace

import torch
from hypothesis import strategies as st

from builds import every_build
from fggp.scores import gradient, largest, magnitude, saliency
from fggp.weights.layers import Layer, Layout
from tensors import levels

BUILDS = every_build()
SCORES = [s for score in (magnitude, gradient, saliency) for s in (score, largest(score))]
SIZES = [0, 1, 3, 7, 8, 9, 15, 16, 17, 33, 100, 4095, 4096, 4097, 4103, 8192, 65535, 65536, 65537, 70001]
"""Sizes of layers around a vector, a chunk (4,096) and a task (65,536) of the kernels."""

OFFSETS = st.integers(0, 5)


def values_of_kind(size, dtype, kind, seed):
    """Values of a kind: all zero, from a few levels with infinities and NaN, or (nearly) all different."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "zero":
        return torch.zeros(size, dtype=dtype)
    if kind == "random":
        return torch.randn(size, generator=generator).to(dtype)
    some = torch.tensor([*levels(dtype, infinite=True), math.nan], dtype=torch.float64).to(dtype)
    return some[torch.randint(len(some), (size,), generator=generator)]


def at_offset(tensor, offset):
    """The same values, starting this many elements into an allocation."""
    storage = torch.empty(offset + len(tensor), dtype=tensor.dtype)
    return storage[offset:].copy_(tensor)


@st.composite
def tensors(draw, size, dtype):
    """Values of any kind in an allocation that ends where they do, so that sanitizers see a read beyond them."""
    kind, seed, offset = draw(st.sampled_from(["zero", "levels", "random"])), draw(st.integers(0, 99)), draw(OFFSETS)
    return at_offset(values_of_kind(size, dtype, kind, seed), offset)


@st.composite
def marks_of_size(draw, size):
    """Marks 0, 1 and 2 in various proportions, or only one of them."""
    shares = draw(st.sampled_from([(0, 1, 0), (1, 1, 1), (1, 100, 1), (1000, 1, 0), (1, 0, 0), (1, 0, 1)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    marks = torch.multinomial(torch.tensor(shares).float(), size + 1, replacement=True, generator=generator)[:size]
    return at_offset(marks.to(torch.uint8), draw(OFFSETS))


@st.composite
def layers_and_marks(draw):
    """Layers and their marks."""
    layers, marks = [], []
    for i in range(draw(st.integers(0, 4))):
        size, dtype = draw(st.sampled_from(SIZES)), draw(st.sampled_from([torch.float32, torch.bfloat16]))
        weight, grad = draw(tensors(size, dtype)), draw(st.none() | tensors(size, dtype))
        layers.append(Layer(f"{i}.weight", Layout.of_mask(weight), weight, grad))
        marks.append(draw(marks_of_size(size)))
    return layers, marks


CASES = {
    "build": st.sampled_from(BUILDS),
    "threads": st.sampled_from([1, 3]),
    "case": layers_and_marks(),
    "score": st.sampled_from(SCORES),
    "eligible_mark": st.sampled_from([0, 1, 2]),
}


def all_scores(layers, marks, score, eligible_mark):
    """The scores of all weights with the mark ``eligible_mark``, concatenated."""
    ranked = [score.of(la.block(0, len(la)))[m == eligible_mark] for la, m in zip(layers, marks, strict=True)]
    return torch.cat([torch.empty(0), *ranked])


def one_layer(size=40, dtype=torch.float32, **changes):
    """A layer of random values, with some of its fields changed."""
    weight, grad = torch.randn(size, dtype=dtype), torch.randn(size, dtype=dtype)
    return replace(Layer("w", Layout.of_mask(weight), weight, grad), **changes)
