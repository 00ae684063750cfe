"""Descriptions that ask for the impossible, and what plans may cost."""

import pytest
import torch

from networks import Refused, build, closing


def described(nodes, outputs, inputs=({"name": "x", "type": "F32", "shape": [2]},)):
    return {"inputs": list(inputs), "nodes": nodes, "outputs": outputs}


ADD = {"op": "binary", "function": "add", "in": [0, 0]}


def test_two_outputs_of_one_name_are_refused():
    outputs = [{"name": "y", "value": 1}, {"name": "z", "value": 0}, {"name": "y", "value": 0}]
    with pytest.raises(Refused, match='it has two outputs with the name "y"'):
        build(described([ADD], outputs))


def test_two_inputs_of_one_name_are_refused():
    inputs = [{"name": "x", "type": "F32", "shape": [2]}] * 2
    with pytest.raises(Refused, match='it has two inputs with the name "x"'):
        build(described([ADD], [{"name": "y", "value": 2}], inputs))


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63 - 1), -(10**18), 10**18, 0, -1])
def test_whole_numbers_of_64_bits_are_sizes(number):
    """["-", ["+", number, 1], ...] would not be exact in floating point."""
    size = ["-", number, number - 1 if number > 0 else ["-", number, 1]]
    nodes = [{"op": "fill", "in": [], "shape": [size], "type": "F32", "value": 3}]
    with closing(build(described(nodes, [OUT]))) as network:
        assert network.run({"x": torch.ones(2)})["y"].tolist() == [3]


def test_sizes_that_overflow_on_the_way_are_refused():
    nodes = [{"op": "fill", "in": [], "shape": [["-", -(2**63), ["-", -(2**63), 1]]], "type": "F32", "value": 3}]
    with pytest.raises(Refused, match="a size is too large"), closing(build(described(nodes, [OUT]))) as network:
        network.run({"x": torch.ones(2)})


OUT = {"name": "y", "value": 1}


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 9999999999999999999, 10**30])
def test_whole_numbers_beyond_64_bits_are_no_sizes(number):
    nodes = [{"op": "fill", "in": [], "shape": [number], "type": "F32", "value": 3}]
    with pytest.raises(Refused), closing(build(described(nodes, [OUT]))) as network:
        network.run({"x": torch.ones(2)})


HUGE = {  # 512 GB or more
    "one tensor": [{"op": "fill", "in": [], "shape": [2**37], "type": "F32", "value": 1}],
    "several": [{"op": "fill", "in": [], "shape": [2**37], "type": "I64", "value": i} for i in range(40)]
    + [{"op": "concat", "in": list(range(1, 41)), "dim": 0}],
    "in the kernels' layout": [
        {"op": "reshape", "in": [0], "shape": [1, 1, 2, 1]},
        {"op": "expand", "in": [1], "shape": [2**10, 2**10, 2, 2**16]},
        {"op": "affine", "in": [2], "activation": ["silu"]},
    ],
    "a convolution": [
        {"op": "reshape", "in": [0], "shape": [1, 1, 2, 1]},
        {"op": "expand", "in": [1], "shape": [2**12, 1, 2, 2**24]},
        {"op": "conv", "in": [2, "weight"], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1},
    ],
    "an unpacked window": [
        {"op": "reshape", "in": [0], "shape": [1, 1, 2, 1]},
        {
            "op": "conv",
            "in": [1, "weight"],
            "stride": [1, 1],
            "padding": [2**18, 2**17],
            "dilation": [1, 1],
            "groups": 1,
        },
        {"op": "adaptive_average_pool", "in": [2], "size": [1, 1]},
    ],
}


@pytest.mark.parametrize("nodes", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("products", ["kernels", "operators"])
def test_more_memory_than_there_is_is_an_error(nodes, products):
    description = {**described(nodes, [{"name": "y", "value": len(nodes)}]), "plan": {"products": products}}
    with closing(build(description, {"weight": torch.eye(3)[None, None]})) as network:
        for _ in range(2):
            with pytest.raises((MemoryError, Refused), match=r"out of memory: it needs \d+ MB|too large"):
                network.run({"x": torch.ones(2)})


def test_layers_of_one_shape_and_similar_sparsity_share_their_trials():
    count, size = 30, 20
    torch.manual_seed(0)
    tensors = {f"weight{i}": torch.randn(size, size, 3, 3) for i in range(count)}
    for i, weight in enumerate(tensors.values()):
        weight.view(-1)[150 + 2 * i :] = 0  # 150 to 208 of 3,600
    window = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    nodes = [{"op": "conv", "in": [i, f"weight{i}"], **window} for i in range(count)]
    inputs = [{"name": "x", "type": "F32", "shape": ["N", size, 9, 9]}]
    with closing(build(described(nodes, [{"name": "y", "value": count}], inputs), tensors)) as network:
        x = torch.randn(16, size, 9, 9)
        network.run({"x": x})
        trials = network.profile({"x": x})["trials"]
        assert 0 < trials <= 2 * 2 * 26  # two orders of magnitude, and the last output has another layout
        network.run({"x": x})
        assert network.profile({"x": x})["trials"] == trials
