"""Hypothesis strategies: weights and gradients of any shape, dtype and memory layout, full of ties."""

import math

import torch
from hypothesis import strategies as st
from torch import nn

from fggp.weights.prunable import Prunable

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@st.composite
def shapes(draw, most=48):
    """1-d to 5-d shapes with at most ``most`` elements; dimensions of size 1 are common."""
    shape, limit = [], most
    for _ in range(draw(st.integers(1, 5))):
        shape.append(draw(st.integers(1, min(limit, 12))))
        limit //= shape[-1]
    return tuple(draw(st.permutations(shape)))


def levels(dtype, infinite):
    """A few values, so that ties are common: both zeros, denormals, neighbouring floats, the extremes."""
    info = torch.finfo(dtype)
    values = [0.0, -0.0, 1.0, -1.0, 1.0 + info.eps, 0.5, -2.0, info.smallest_normal, info.max]
    values += [-info.smallest_normal * info.eps, 3 * info.smallest_normal * info.eps]  # denormals
    return values + ([math.inf, -math.inf] if infinite else [])


@st.composite
def values(draw, shape, dtype, infinite=False):
    """A contiguous tensor: all zero, from a few levels, or (nearly) all different."""
    n = math.prod(shape)
    kind = draw(st.sampled_from(["zero", "few", "levels", "random"]))
    if kind == "zero":
        return torch.zeros(shape, dtype=dtype)
    if kind == "random":
        generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
        return torch.randn(n, generator=generator, dtype=torch.float64).to(dtype).view(shape)
    some = levels(dtype, infinite)
    if kind == "few":
        some = draw(st.lists(st.sampled_from(some), min_size=1, max_size=3))
    chosen = draw(st.lists(st.sampled_from(some), min_size=n, max_size=n))
    return torch.tensor(chosen, dtype=torch.float64).to(dtype).view(shape)


def laid_out(tensor, order, gaps):
    """The same values with the dimensions in this order in memory and, on request, gaps between the elements."""
    inverse = sorted(range(tensor.ndim), key=order.__getitem__)
    if gaps:
        sizes = [tensor.shape[d] for d in order]
        storage = torch.full([*sizes[:-1], 2 * sizes[-1]], math.nan, dtype=tensor.dtype)
        view = storage[..., ::2].permute(inverse)
    else:
        view = torch.empty([tensor.shape[d] for d in order], dtype=tensor.dtype).permute(inverse)
    view.copy_(tensor)
    return view


@st.composite
def layouts(draw, tensor):
    """The same tensor in any memory layout."""
    order = draw(st.permutations(range(tensor.ndim)))
    return laid_out(tensor, order, draw(st.booleans()))


@st.composite
def bool_masks(draw):
    """A mask of any shape: empty, full or between."""
    shape = draw(shapes())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    return torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))


@st.composite
def models(draw, dtypes=DTYPES, infinite=True):
    """Several weights, some without a gradient, and a mask for each; all contiguous."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        shape, dtype = draw(shapes()), draw(st.sampled_from(dtypes))
        theta = draw(values(shape, dtype, infinite))
        grad = draw(st.one_of(values(shape, dtype), values(shape, dtype), st.none()))
        share = draw(st.sampled_from([1.0, 1.0, 0.5, 0.1]))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        found.append((theta, grad, torch.rand(shape, generator=generator) < share))
    return found


def prunables(thetas, grads):
    """The prunable weights, named w0, w1, …, as the library lists them."""
    weights = []
    for i, (theta, grad) in enumerate(zip(thetas, grads, strict=True)):
        parameter = nn.Parameter(theta)
        parameter.grad = grad
        weights.append(Prunable(f"w{i}", parameter, []))
    return weights
