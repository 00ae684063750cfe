"""Constants that a network gives another shape, and what reads them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from networks import build, closing


def reshaped(name, shape):
    return {"op": "reshape", "name": f"{name} reshaped", "in": [name], "shape": shape}


def run(nodes, tensors, x, output):
    """The output of a network with one input, value 0; each node makes the next value."""
    description = {
        "inputs": [{"name": "x", "type": "F32", "shape": list(x.shape)}],
        "nodes": nodes,
        "outputs": [{"name": "y", "value": output}],
    }
    with closing(build(description, tensors)) as network:
        first, second = (network.run({"x": x}, threads)["y"] for threads in (1, 2))
    assert torch.equal(first, second)
    return first


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 20), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_linear(rows, inputs, outputs, density):
    generator = torch.Generator().manual_seed(rows * inputs + outputs)
    table = torch.randn(rows * inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    weight *= torch.rand(weight.shape, generator=generator) < density
    x = torch.randn(1, rows, outputs, generator=generator)
    nodes = [
        reshaped("table", [1, rows, inputs]),
        {"op": "linear", "name": "linear", "in": [1, "weight", None]},
        {"op": "add", "name": "sum", "in": [0, 2]},
    ]
    expected = x + F.linear(table.view(1, rows, inputs), weight)
    torch.testing.assert_close(run(nodes, {"table": table, "weight": weight}, x, 3), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("read", ["input", "residual"])
def test_convolution(read):
    image, weight = torch.randn(64 * 3), torch.randn(4, 4, 3, 3) * (torch.rand(4, 4, 3, 3) < 0.1)
    x = torch.randn(3, 4, 4, 4)
    given = [1, "weight"] if read == "input" else [0, "weight", None, 1]
    nodes = [
        reshaped("image", [3, 4, 4, 4]),
        {
            "op": "conv",
            "name": "conv",
            "in": given,
            "stride": [1, 1],
            "padding": [1, 1],
            "dilation": [1, 1],
            "groups": 1,
        },
        {"op": "add", "name": "sum", "in": [0, 2]},
    ]
    constant = image.view(3, 4, 4, 4)
    result = F.conv2d(constant, weight, padding=1) if read == "input" else F.conv2d(x, weight, padding=1) + constant
    torch.testing.assert_close(run(nodes, {"image": image, "weight": weight}, x, 3), x + result, rtol=1e-5, atol=1e-5)


def test_reshaped_twice_and_as_an_output():
    table, weight = torch.randn(24), torch.randn(8, 6)
    nodes = [
        reshaped("table", [4, 6]),
        {"op": "reshape", "name": "again", "in": [1], "shape": [2, 2, 6]},
        {"op": "linear", "name": "linear", "in": [2, "weight", None]},
    ]
    x = torch.randn(1, 1)
    torch.testing.assert_close(run(nodes, {"table": table, "weight": weight}, x, 2), table.view(2, 2, 6))
    expected = table.view(2, 2, 6) @ weight.T
    torch.testing.assert_close(run(nodes, {"table": table, "weight": weight}, x, 3), expected, rtol=1e-5, atol=1e-5)
