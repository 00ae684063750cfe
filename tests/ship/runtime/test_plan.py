"""Plans: reused memory, padding that stays zero, batches of any size, conversions of layout, chains of products."""

import os
from unittest import mock

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
from fggp.ship.runtime import kernels
from fggp.ship.runtime.engine import SparseEngine
from fggp.ship.runtime.instructions import Instruction, Product, Torch
from fggp.ship.runtime.memory import Memory
from fggp.ship.runtime.plan import Plan
from fggp.ship.runtime.tiles import Tiling, candidate_tilings
from models import Builder, Tilings, exact, products

aten = torch.ops.aten
KERNELS = kernels.load()


def first_tiling(chain):
    """The first candidate, in place of the fastest."""
    return candidate_tilings(chain, KERNELS)[0]


def plan_of(graph, batch, lanes, chained=False, sparse=None):
    with mock.patch("fggp.ship.runtime.plan.tuner", Tilings(first_tiling, chained)):
        return Plan(graph, batch, KERNELS, lanes, products(graph) if sparse is None else sparse)


def bits(tensors):
    return [x.contiguous().view(torch.int32) for x in tensors]


def assert_same(actual, expected):
    for a, b in zip(bits(actual), bits(expected), strict=True):
        assert torch.equal(a, b)


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


LANES = st.sampled_from([1, KERNELS.lanes])


@given(data=st.data(), batch=st.integers(1, 20), lanes=LANES, chained=st.booleans())
def test_no_two_activations_in_use_share_memory(data, batch, lanes, chained):
    """Shared memory would change the outputs. NaN and infinity of one run do not reach the next."""
    batch = batch if lanes > 1 else 1 + batch % 3
    graph, b = data.draw(graphs())
    plan = plan_of(graph, batch, lanes, chained)
    inputs = [b.randn(batch, *v.shape[1:]) for v in graph.inputs]
    first = plan.run(inputs, batch, 1)
    assert_close(first, exact(graph, inputs))
    plan.run([torch.full_like(x, torch.nan) for x in inputs], batch, 1)
    plan.run([torch.full_like(x, -torch.inf) for x in inputs], batch, 1)
    assert_same(plan.run(inputs, batch, 1), first)
    assert_same(plan.run(inputs, batch, 3), first)
    other = [b.randn(batch, *v.shape[1:]) for v in graph.inputs]
    assert_close(plan.run(other, batch, 1), exact(graph, other))


@given(data=st.data(), batch=st.integers(1, 20), lanes=LANES, chained=st.booleans())
def test_buffers_in_use_at_the_same_time_do_not_overlap(data, batch, lanes, chained):
    """Checked step by step. The exception is a buffer that overwrites another in the step that reads that one last."""
    graph, _ = data.draw(graphs())
    steps = plan_of(graph, batch, lanes, chained).steps
    memory = Memory(steps)
    native = [step for step in steps if not isinstance(step, Torch)]
    used = {b: [i for i, s in enumerate(native) if b in (*s.reads, *s.writes)] for s in native for b in s.writes}
    place = {b: (start := memory.view(b).data_ptr(), start + 4 * b.layout.floats) for b in used}
    for a in used:
        for b in used:
            if a is b or place[a][0] >= place[b][1] or place[b][0] >= place[a][1]:
                continue
            if a.layout.padded or b.layout.padded:
                assert a.layout == b.layout
                assert place[a] == place[b]
            early, late = sorted((a, b), key=lambda x: used[x][0])
            assert used[early][-1] <= used[late][0]
            if used[early][-1] == used[late][0]:
                step = native[used[late][0]]
                assert late.may_overwrite is early
                assert [*step.reads, *step.writes].count(early) == 1


def test_a_residual_stays_while_another_product_of_the_chain_needs_it():
    """The second product may overwrite its residual, which the first one, a 3×3, reads around every tile."""
    b = Builder(KERNELS.lanes)
    x = b.conv(b.input(8, 9, 9), weight=torch.eye(8)[:, :, None, None], activation=RELU)
    y = b.conv(x, weight=b.sparse(8, 8, 3, 3), padding=1)
    graph = b.graph(b.conv(y, x, weight=b.sparse(8, 8, 1, 1)))
    with mock.patch("fggp.ship.runtime.plan.tuner", Tilings(lambda chain: Tiling(2, 2, (8,) * len(chain)), True)):
        plan = Plan(graph, b.batch, KERNELS, KERNELS.lanes, products(graph))
    assert max(len(step.chain) for step in plan.steps if isinstance(step, Product)) == 2
    inputs = [b.randn(b.batch, 8, 9, 9)]
    for threads in (1, 3):
        assert_close(plan.run(inputs, b.batch, threads), exact(graph, inputs))


@pytest.mark.parametrize("lanes", [1, KERNELS.lanes])
def test_what_was_not_replaced_when_it_could_have_been_is_not_replaced_later(lanes):
    """The ReLU cannot overwrite its input, which is read once more, when the ReLU's output is in use too."""
    b = Builder(1)
    made = b.conv(b.input(4, 6, 5), weight=b.sparse(4, 4, 1, 1))
    positive = b.add(Activate, made, activation=RELU)
    graph = b.graph(b.add(Add, positive, made))
    inputs = [b.randn(1, 4, 6, 5)]
    assert_close(plan_of(graph, 1, lanes).run(inputs, 1, 1), exact(graph, inputs))


def test_an_activation_between_margins():
    """The activation's output has a reader that needs a margin; its input has none."""
    for lanes in (1, KERNELS.lanes):
        b = Builder(3)
        x = b.conv(b.input(4, 5, 6), weight=b.sparse(4, 4, 1, 1))
        y = b.add(Activate, x, activation=Activation("sigmoid"))
        graph = b.graph(b.conv(y, weight=b.sparse(4, 4, 5, 5), padding=2), x)
        plan = plan_of(graph, 3, lanes)
        inputs = [b.randn(3, 4, 5, 6)]
        assert_close(plan.run(inputs, 3, 1), exact(graph, inputs))


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
    engine = SparseEngine(graph, KERNELS)
    x = b.randn(40, 3, 11, 10)
    single = torch.cat([engine.run([image[None]])[0] for image in x])
    assert_close([single], exact(graph, [x]))
    for batch in [*range(1, 41), 100]:
        many = x.repeat(3, 1, 1, 1)[:batch]
        (y,) = engine.run([many])
        torch.testing.assert_close(y, single.repeat(3, 1)[:batch], rtol=1e-5, atol=1e-6)


def test_large_batches_go_through_in_pieces(cnn):
    graph, b = cnn
    engine = SparseEngine(graph, KERNELS)
    assert engine.piece_size(100) < 100
    x = b.randn(100, 3, 11, 10)
    assert_close(engine.run([x]), exact(graph, [x]))
    assert_same(engine.run([x]), engine.run([x]))


def test_large_batches_with_an_input_among_the_outputs():
    b = Builder(2)
    x = b.input(3, 4, 4)
    y = b.conv(x, weight=b.sparse(4, 3, 3, 3))
    graph = b.graph(y, x, y, torch.ones(2), "constant")
    engine = SparseEngine(graph, KERNELS)
    given = b.randn(100, 3, 4, 4)
    kept = given.clone()
    y, returned, again, ones, constant = engine.run([given])
    assert_close([y, again, returned], exact(b.graph(graph.outputs[0], graph.outputs[0], x), [kept]))
    assert torch.equal(given, kept)
    assert (ones == 1).all()
    assert constant == "constant"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_of_nothing(cnn, threads):
    graph, _ = cnn
    torch.set_num_threads(threads)
    try:
        (y,) = SparseEngine(graph, KERNELS).run([torch.empty(0, 3, 11, 10)])
    finally:
        torch.set_num_threads(1)
    assert y.shape == (0, 5)


@given(height=st.integers(1, 6), width=st.integers(1, 6), lanes=LANES, seed=st.integers(0, 5))
def test_inputs_in_any_memory_order(height, width, lanes, seed):
    b = Builder(3, seed)
    graph = b.graph(b.conv(b.input(4, height, width), weight=b.sparse(5, 4, 3, 3), padding=1))
    plan = plan_of(graph, 3, lanes)
    x = b.randn(3, 4, height, width)
    right = plan.run([x], 3, 1)
    strange = [
        x.to(memory_format=torch.channels_last),
        x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        torch.stack([x, x], -1)[..., 0],
        x.clone().requires_grad_(),
        x[:1].expand(3, -1, -1, -1),
    ]
    for other in strange[:-1]:
        assert_same([y.detach() for y in plan.run([other], 3, 1)], right)
    assert_same(plan.run([strange[-1]], 3, 1), plan.run([strange[-1].contiguous()], 3, 1))


def test_inputs_too_large_for_the_kernels_stay_with_pytorch():
    """The limit of offsets, 2 GiB, is lowered here so that the test needs little memory."""
    b = Builder(KERNELS.lanes)
    x = b.conv(b.input(3, 8, 8), weight=b.sparse(3, 3, 1, 1))
    small = b.conv(x, weight=b.sparse(1, 3, 8, 8))
    y = b.conv(b.conv(x, weight=b.sparse(2, 3, 3, 3), stride=3), weight=b.sparse(2, 2, 1, 1))
    graph = b.graph(y, small)
    inputs = [b.randn(b.batch, 3, 8, 8)]
    # Pixels that the inputs take: 195 twice, 135 unfolded, 10.
    for pixels, far in [(200, 0), (150, 2), (100, 3), (5, 4)]:
        with mock.patch("fggp.ship.runtime.layout.OFFSET_LIMIT", pixels * KERNELS.lanes * 4):
            plan = plan_of(graph, b.batch, KERNELS.lanes)
        assert sum(isinstance(step, Torch) for step in plan.steps) == far
        assert_close(plan.run(inputs, b.batch, 1), exact(graph, inputs))


def test_a_forked_process_does_not_write_into_its_parents_activations(cnn):
    graph, b = cnn
    plan = plan_of(graph, 4, KERNELS.lanes)
    x = b.randn(4, 3, 11, 10)
    plan.run([x], 4, 1)
    before = plan.memory.floats.clone()
    child = os.fork()
    if child == 0:  # nothing but the kernels: the test's own machinery belongs to the parent
        try:
            plan.run([x + 1], 4, 1)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(plan.memory.floats, before)


def test_memory_is_used_again():
    b = Builder(KERNELS.lanes)
    x = b.input(8, 16, 16)
    for _ in range(20):
        x = b.conv(x, weight=b.sparse(8, 8, 3, 3), padding=1)
    plan = plan_of(b.graph(x), b.batch, KERNELS.lanes)
    one = max(buffer.layout.floats for step in plan.steps for buffer in step.writes) * 4
    assert plan.memory.bytes <= 3 * one + 1000  # two that take turns, and one without margins at the end


def test_values_are_loaded_and_stored_once():
    b = Builder(2)
    x = b.input(4, 5, 5)
    y = b.conv(x, weight=b.sparse(4, 4, 3, 3), padding=1)
    z = b.call(aten.sin.default, y)
    w = b.conv(y, z, weight=b.sparse(4, 4, 1, 1))
    plan = plan_of(b.graph(y, w, z), 2, KERNELS.lanes)
    names = [step.name for step in plan.steps if isinstance(step, Instruction)]
    assert sorted(names) == ["load", "load", "store", "store"]  # x, z; y for PyTorch and the caller, w
