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


def test_the_thread_that_calls_goes_on_as_before():
    test_the_library_takes_them_for_zeros(every_build()[0], 2)
    assert (torch.tensor([DENORMAL]) * 0.5).item() > 0
