"""The C interface of networks: what goes in, what comes out, and what is refused."""

import pytest
import torch

from networks import Refused, build, closing, run_one


def network(**changes):
    """A description of one reshape, with changes."""
    return {
        "inputs": [{"name": "x", "type": "F32", "shape": ["N", 4]}],
        "nodes": [{"op": "reshape", "name": "flat", "in": [0], "shape": [["*", 4, "N"]]}],
        "outputs": [{"name": "y", "value": 1}],
        **changes,
    }


def test_one_operation():
    x = torch.randn(3, 4)
    assert torch.equal(run_one("reshape", [x], shape=[2, 6]), x.view(2, 6))


def test_free_sizes():
    with closing(build(network())) as made:
        for batch in (1, 3, 2, 3):
            x = torch.randn(batch, 4)
            assert torch.equal(made.run({"x": x})["y"], x.view(-1))
        assert made.description == {
            "inputs": [{"name": "x", "type": "F32", "shape": ["N", 4]}],
            "outputs": ["y"],
            "metadata": {},
        }


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, 'the input "x" is missing'),
        ({"z": torch.zeros(1, 4)}, 'the network has no input "z"'),
        ({"x": torch.zeros(1, 5)}, r'the input "x" is F32 \[1, 5\]; it must be F32 \[N, 4\]'),
        ({"x": torch.zeros(1, 4, dtype=torch.int64)}, r'the input "x" is I64 \[1, 4\]; it must be F32 \[N, 4\]'),
        ({"x": torch.zeros(0, 4)}, "where N is at least 1"),
    ],
)
def test_wrong_inputs_are_named(inputs, message):
    with closing(build(network())) as made, pytest.raises(Refused, match=message):
        made.run(inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": [{"op": "hop", "in": [0]}]}, 'needs the operator "hop"'),
        ({"nodes": [{"op": "reshape", "in": [1], "shape": [4]}]}, "reads value 1 before it exists"),
        ({"nodes": [{"op": "reshape", "in": ["w"], "shape": [4]}]}, 'has no tensor "w"'),
        ({"outputs": [{"name": "y", "value": 2}]}, "reads value 2 before it exists"),
        ({"inputs": 1}, 'has no "inputs"'),
    ],
)
def test_a_damaged_description_is_refused(changes, message):
    with pytest.raises(Refused, match=message):
        build(network(**changes))
