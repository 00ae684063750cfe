"""Denormal numbers, for which processors need a hundred times as long, are zeros to the library and to nobody else."""

import pytest
import torch

from builds import build_name, every_build
from networks import build, closing

DENORMAL = 1e-40


@pytest.mark.parametrize("on", every_build(), ids=build_name)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_library_takes_them_for_zeros(on, threads):
    node = {"op": "binary", "function": "add", "in": [0, 0]}
    inputs = [{"name": "x", "type": "F32", "shape": [4]}]
    description = {"inputs": inputs, "nodes": [node], "outputs": [{"name": "y", "value": 1}]}
    x = torch.tensor([DENORMAL, -DENORMAL, 2e-38, 2.0])
    with closing(build(description, on=on)) as network:
        y = network.run({"x": x}, threads)["y"]
    assert y.tolist() == [0, 0, *(2 * x[2:]).tolist()]


@pytest.mark.parametrize("on", every_build(), ids=build_name)
def test_pytorchs_threads_go_on_as_before(on):
    """The library runs on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        test_the_library_takes_them_for_zeros(on, 2)
        assert (torch.full((1 << 20,), DENORMAL) * 0.5 > 0).all()
    finally:
        torch.set_num_threads(before)
