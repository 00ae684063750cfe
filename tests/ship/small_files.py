"""Models and files for the tests of the small file."""

import copy
import math
import os

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import nn

import fggp
from fggp.ship.file.dtypes import CODE_OF_DTYPE
from tensors import layouts, shapes

INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# The fixtures that hypothesis would complain about hold no state.
each_in_turn = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


class Holder(nn.Module):
    """A module of these tensors, as buffers t0, t1, …"""

    def __init__(self, *tensors):
        super().__init__()
        for i, tensor in enumerate(tensors):
            self.register_buffer(f"t{i}", tensor)


def bits(tensor):
    return tensor.detach().contiguous().view(-1).view(INTEGER_OF_SIZE[tensor.element_size()])


def states_equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(bits(a[k]), bits(b[k])) for k in a
    )


def with_other_bits(model):
    """A copy of a model with every bit flipped, in the same memory layout."""
    changed = copy.deepcopy(model)
    for tensor in changed.state_dict().values():
        new = ~bits(tensor) if tensor.dtype != torch.bool else bits(tensor) ^ 1
        tensor.copy_(new.view(tensor.dtype).view(tensor.shape))
    assert not states_equal(changed, model) or not any(t.numel() for t in model.state_dict().values())
    return changed


def random_bits(shape, dtype, density, seed):
    """A tensor of random bits, NaNs and −0 among them; a share of ``density`` is not zero."""
    generator = torch.Generator().manual_seed(seed)
    n, size = math.prod(shape), dtype.itemsize
    flat = torch.randint(0, 256, (n, size), generator=generator, dtype=torch.uint8)
    if dtype == torch.bool:
        flat &= 1
    elif dtype.is_floating_point:  # some −0
        minus = torch.rand(n, generator=generator) < 0.2
        flat[minus] = torch.tensor([0] * (size - 1) + [128], dtype=torch.uint8)
    flat[torch.rand(n, generator=generator) >= density] = 0
    return flat.view(-1).view(dtype).view(shape)


@st.composite
def holders(draw):
    tensors = []
    for _ in range(draw(st.integers(0, 4))):
        shape = draw(st.one_of(shapes(600), st.sampled_from([(), (0,), (3, 0, 2), (1,), (1000,), (40, 30)])))
        dtype = draw(st.sampled_from(list(CODE_OF_DTYPE)))
        density = draw(st.sampled_from([0.0, 0.02, 0.2, 0.7, 1.0]))
        tensor = random_bits(shape, dtype, density, draw(st.integers(0, 99)))
        tensors.append(draw(layouts(tensor)) if tensor.numel() and tensor.ndim and dtype.is_floating_point else tensor)
    return Holder(*tensors)


def pruned(model, sparsity, seed=0):
    """Prune each tensor of two dimensions or more at random, to about this sparsity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p[torch.rand(p.shape, generator=generator) < sparsity] = 0
    return model


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 5))


def entries(path):
    """A file's tensors and metadata, as safetensors reads them."""
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 (no mapping)


def assert_refused(path, model, match):
    """Loading the file into the model raises this error, and changes nothing."""
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=match) as error:
        fggp.load(path, model)
    assert str(error.value).startswith(f"path={os.fspath(path)!r} ")
    assert states_equal(before, model)
