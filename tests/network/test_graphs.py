"""Graphs on the library: reused memory, padding that stays zero, batches of any size, conversions, chains."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fggp.ship.graph.operations import (
    RELU,
    Activate,
    Activation,
    AdaptiveAvgPool2d,
    Add,
    Affine,
    AvgPool2d,
    Channels,
    Concat,
    Flatten,
    Gate,
    Linear,
    MaxPool2d,
)
from models import Builder, exact
from networks import closing, library, network_of

aten = torch.ops.aten


def network(graph, lanes, chains="no", **plan):
    """A network of a graph on the kernels, with the first tilings in place of the fastest."""
    plan = {"products": "kernels", "lanes": lanes, "tilings": "first", "chains": chains, "pieces": "no", **plan}
    return closing(network_of(graph, plan))


def run(made, graph, inputs, threads=1):
    return list(made.run(dict(zip((v.name for v in graph.inputs), inputs, strict=True)), threads).values())


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))


def assert_close(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert (a.double() - b).norm() <= 1e-5 * b.norm() + 1e-6


CHANNELS = 4
STEPS = {
    "pointwise": lambda b, x, y: b.conv(x, weight=b.sparse(CHANNELS, CHANNELS, 1, 1), bias=b.randn(CHANNELS)),
    "pointwise, residual": lambda b, x, y: b.conv(x, y, weight=b.sparse(CHANNELS, CHANNELS, 1, 1)),
    "3x3": lambda b, x, y: b.conv(x, weight=b.sparse(CHANNELS, CHANNELS, 3, 3), padding=1, activation=RELU),
    "3x3, residual": lambda b, x, y: b.conv(
        x, y, weight=b.sparse(CHANNELS, CHANNELS, 3, 3), padding=1, activation=RELU
    ),
    "5x5": lambda b, x, y: b.conv(x, weight=b.sparse(CHANNELS, CHANNELS, 5, 5), padding=2),
    "1x3": lambda b, x, y: b.conv(x, weight=b.sparse(CHANNELS, CHANNELS, 1, 3), padding=(0, 1)),
    "3x1": lambda b, x, y: b.conv(x, weight=b.sparse(CHANNELS, CHANNELS, 3, 1), padding=(1, 0)),
    "depthwise": lambda b, x, y: b.conv(x, weight=b.sparse(CHANNELS, 1, 3, 3), padding=2, dilation=2, groups=CHANNELS),
    "max": lambda b, x, y: b.add(
        MaxPool2d, x, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), ceil_mode=False
    ),
    "average": lambda b, x, y: b.add(
        AvgPool2d,
        x,
        kernel=(3, 3),
        stride=(1, 1),
        padding=(1, 1),
        ceil_mode=False,
        count_include_pad=False,
        divisor_override=None,
    ),
    "gate": lambda b, x, y: b.add(AdaptiveAvgPool2d, x, size=tuple(x.shape[2:])),
    "sum": lambda b, x, y: b.add(Add, x, y, activation=RELU),
    "relu": lambda b, x, y: b.add(Activate, x, activation=RELU),
    "norm": lambda b, x, y: b.add(Affine, x, scale=b.randn(CHANNELS), shift=b.randn(CHANNELS)),
    "concat": lambda b, x, y: b.conv(
        b.add(Concat, x, y, dim=1), weight=b.sparse(CHANNELS, 2 * CHANNELS, 3, 3), padding=1
    ),
    "sigmoid": lambda b, x, y: b.add(Activate, x, activation=Activation("sigmoid")),  # not zero where x is
    "squeeze and excite": lambda b, x, y: b.add(
        Gate, x, b.add(AdaptiveAvgPool2d, y, size=(1, 1)), activation=Activation("hard_sigmoid")
    ),
    "shuffle": lambda b, x, y: b.add(Channels, x, y, index=(0, 5, 1, 7)),
    "sine": lambda b, x, y: b.call(aten.sin.default, x),  # PyTorch's
    "tokens": lambda b, x, y: b.add(Linear, x, weight=b.sparse(x.shape[3], x.shape[3]), bias=None),
}


@st.composite
def graphs(draw, most=9):
    """Random graphs: operations on images of one shape, each on any earlier values; some of the values are outputs."""
    b = Builder(draw(st.integers(1, 3)), draw(st.integers(0, 9)))
    height, width = draw(st.sampled_from([(6, 5), (1, 3), (4, 9)]))
    values = [b.input(CHANNELS, height, width), b.input(CHANNELS, height, width)]
    back = st.sampled_from([0, 0, 0, 0, 1, 1, 2, 4])
    for kind, i, j in draw(st.lists(st.tuples(st.sampled_from(list(STEPS)), back, back), min_size=2, max_size=most)):
        values.append(STEPS[kind](b, values[-1 - i % len(values)], values[-1 - j % len(values)]))
    outputs = [values[-1], *draw(st.lists(st.sampled_from(values), max_size=2))]
    return b.graph(*outputs), b


LANES = st.sampled_from(["one", "vector"])


@given(data=st.data(), batch=st.integers(1, 20), lanes=LANES, chains=st.sampled_from(["yes", "no"]))
def test_no_two_activations_in_use_share_memory(data, batch, lanes, chains):
    """Shared memory would change the outputs, which have the bits of a run in which each tensor has its own memory.

    NaN and infinity of one run do not reach the next.
    """
    batch = batch if lanes == "vector" else 1 + batch % 3
    graph, b = data.draw(graphs())
    inputs = [b.randn(batch, *v.shape[1:]) for v in graph.inputs]
    with network(graph, lanes, chains) as made:
        first = run(made, graph, inputs)
        assert_close(first, exact(graph, inputs))
        run(made, graph, [torch.full_like(x, torch.nan) for x in inputs])
        run(made, graph, [torch.full_like(x, -torch.inf) for x in inputs])
        assert_same(run(made, graph, inputs), first)
        assert_same(run(made, graph, inputs, threads=3), first)
        other = [b.randn(batch, *v.shape[1:]) for v in graph.inputs]
        assert_close(run(made, graph, other), exact(graph, other))
    with network(graph, lanes, chains, memory="separate") as separate:
        assert_same(run(separate, graph, inputs), first)


def test_a_residual_stays_while_another_product_of_the_chain_needs_it():
    """The second product may overwrite its residual, which the first one, a 3×3, reads around every tile."""
    b = Builder(library().fggp_lanes())
    x = b.conv(b.input(8, 9, 9), weight=torch.eye(8)[:, :, None, None], activation=RELU)
    y = b.conv(x, weight=b.sparse(8, 8, 3, 3), padding=1)
    graph = b.graph(b.conv(y, x, weight=b.sparse(8, 8, 1, 1)))
    inputs = [b.randn(b.batch, 8, 9, 9)]
    with network(graph, "vector", "yes", tile=(2, 2, 8)) as made:
        for threads in (1, 3):
            assert_close(run(made, graph, inputs, threads), exact(graph, inputs))
        steps = made.profile({"x0": inputs[0]})["steps"]
    assert [len(step["names"]) for step in steps if step["runs"] == "kernels"] == [1, 2]


@pytest.mark.parametrize("lanes", ["one", "vector"])
def test_what_was_not_replaced_when_it_could_have_been_is_not_replaced_later(lanes):
    """The ReLU cannot overwrite its input, which is read once more, when the ReLU's output is in use too."""
    b = Builder(1)
    made = b.conv(b.input(4, 6, 5), weight=b.sparse(4, 4, 1, 1))
    positive = b.add(Activate, made, activation=RELU)
    graph = b.graph(b.add(Add, positive, made))
    inputs = [b.randn(1, 4, 6, 5)]
    with network(graph, lanes) as net:
        assert_close(run(net, graph, inputs), exact(graph, inputs))


@pytest.mark.parametrize("lanes", ["one", "vector"])
def test_an_activation_between_margins(lanes):
    """The activation's output has a reader that needs a margin; its input has none."""
    b = Builder(3)
    x = b.conv(b.input(4, 5, 6), weight=b.sparse(4, 4, 1, 1))
    y = b.add(Activate, x, activation=Activation("sigmoid"))
    graph = b.graph(b.conv(y, weight=b.sparse(4, 4, 5, 5), padding=2), x)
    inputs = [b.randn(3, 4, 5, 6)]
    with network(graph, lanes) as net:
        assert_close(run(net, graph, inputs), exact(graph, inputs))


@pytest.fixture(scope="module")
def cnn():
    """A small convolutional network: its graph and its builder."""
    b = Builder(4)
    x = b.input(3, 11, 10)
    y = b.conv(x, weight=b.sparse(8, 3, 3, 3), padding=1, stride=2, bias=b.randn(8), activation=RELU)
    z = b.conv(y, weight=b.sparse(8, 8, 3, 3, density=0.2), padding=1)
    z = b.conv(z, y, weight=b.sparse(8, 8, 1, 1), activation=RELU)
    z = b.add(AdaptiveAvgPool2d, z, size=(2, 2))
    z = b.add(Flatten, z)
    return b.graph(b.add(Linear, z, weight=b.sparse(5, 32), bias=b.randn(5))), b


def test_every_batch_size_agrees_with_single_images(cnn):
    graph, b = cnn
    x = b.randn(40, 3, 11, 10)
    with closing(network_of(graph, {"products": "kernels", "tilings": "first"})) as made:
        single = torch.cat([run(made, graph, [image[None]])[0] for image in x])
        assert_close([single], exact(graph, [x]))
        for batch in [*range(1, 41), 100]:
            (y,) = run(made, graph, [x.repeat(3, 1, 1, 1)[:batch]])
            torch.testing.assert_close(y, single.repeat(3, 1)[:batch], rtol=1e-5, atol=1e-6)


def test_large_batches_go_through_in_pieces(cnn):
    """A plan for the whole batch would hold the activations of 640 images, and would be found by trials of its own."""
    graph, b = cnn
    x = b.randn(640, 3, 11, 10)
    trials = {}
    for pieces in ("yes", "no"):
        with closing(network_of(graph, {"products": "kernels", "pieces": pieces})) as made:
            given = {"x0": x[: library().fggp_lanes()]}
            alone = made.profile(given)
            first = run(made, graph, [x])
            assert_close(first, exact(graph, [x]))
            assert_same(run(made, graph, [x]), first)
            trials[pieces] = made.profile(given)["trials"] - alone["trials"]
            if pieces == "yes":
                whole = made.profile({"x0": x})
    assert trials["yes"] == 0 < trials["no"]
    assert {step["runs"] for step in whole["steps"]} == {"kernels", "conversion"}
    assert (whole["images"], whole["memory"]) == (library().fggp_lanes(), alone["memory"])


def test_memory_is_used_again():
    b = Builder(1)
    x = b.input(8, 256, 256)
    for _ in range(20):
        x = b.conv(x, weight=b.sparse(8, 8, 3, 3, density=0.01), padding=1)
    graph = b.graph(x)
    given = {"x0": b.randn(1, 8, 256, 256)}
    used = {}
    for memory in ("separate", "reused"):
        with network(graph, "one", memory=memory) as made:
            used[memory] = made.profile(given)["memory"]
    plain = given["x0"].nbytes
    padded = 4 * 8 * (257 * 257 + 1)  # one zero beside each row, and a row of them below each plane
    # The last convolution's output has no padding, and neither has the network's.
    assert 20 * padded + 2 * plain < used["separate"] < 1.01 * (20 * padded + 2 * plain)
    assert 2 * padded + 2 * plain < used["reused"] < 1.01 * (2 * padded + 2 * plain)  # two that take turns


@given(height=st.integers(1, 6), width=st.integers(1, 6), lanes=LANES, seed=st.integers(0, 5))
def test_inputs_in_any_memory_order(height, width, lanes, seed):
    b = Builder(3, seed)
    graph = b.graph(b.conv(b.input(4, height, width), weight=b.sparse(5, 4, 3, 3), padding=1))
    x = b.randn(3, 4, height, width)
    strange = [
        x.to(memory_format=torch.channels_last),
        x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        torch.stack([x, x], -1)[..., 0],
        x.clone().requires_grad_(),
        torch._neg_view(-x),
    ]
    with network(graph, lanes) as made:
        right = run(made, graph, [x])
        for other in strange:
            assert_same(run(made, graph, [other]), right)
        expanded = x[:1].expand(3, -1, -1, -1)
        assert_same(run(made, graph, [expanded]), run(made, graph, [expanded.contiguous()]))


def test_a_forked_process_does_not_write_into_its_parents_activations(cnn):
    graph, b = cnn
    x = b.randn(4, 3, 11, 10)
    with network(graph, "vector") as made:
        right = run(made, graph, [x])
        child = os.fork()
        if child == 0:  # nothing but the library: the test's own machinery belongs to the parent
            try:
                for _ in range(3):
                    run(made, graph, [x + 1])
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert_same(run(made, graph, [x]), right)


def test_values_are_loaded_and_stored_once():
    b = Builder(2)
    x = b.input(4, 5, 5)
    y = b.conv(x, weight=b.sparse(4, 4, 3, 3), padding=1)
    z = b.call(aten.sin.default, y)
    w = b.conv(y, z, weight=b.sparse(4, 4, 1, 1))
    graph = b.graph(y, w, z)
    with network(graph, "vector") as made:
        steps = made.profile({"x0": b.randn(2, 4, 5, 5)})["steps"]
    assert [step["runs"] for step in steps].count("conversion") == 4  # x and z in; y for the sine and the caller, w
