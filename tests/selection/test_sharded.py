"""Processes that hold parts of the weights select what one process does, whatever the parts.

Here threads stand for processes, so that hypothesis can try many; tests/distributed has real ones.
"""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cases import SCORES, expected_marks, quotas
from fggp.scores import Score, gradient, magnitude, random
from fggp.selection import kth, passes
from fggp.selection.chains import Exchange, TopK, run_chain, run_exchange
from fggp.weights.dtensor import Part
from fggp.weights.layers import Layer, Layout
from fggp.weights.processes import Processes
from tensors import models, shapes


class Connections:
    """The connections between threads: each thread waits for the messages of all others."""

    def __init__(self, size):
        self.messages, self.barrier, self.bytes = [None] * size, threading.Barrier(size, timeout=60), [0] * size

    def exchange(self, me, message):
        self.barrier.wait()
        self.messages[me] = message
        self.barrier.wait()
        return list(self.messages)


class Threads(Processes):
    """`Processes` that send their messages from thread to thread."""

    def __init__(self, connections, held, me):
        super().__init__([], torch.device("cpu"), held, me)
        self.connections, self.me = connections, me

    def sum(self, counts):
        if not self.sharded:
            return list(counts)
        self.connections.bytes[self.me] += 8 * len(counts)
        return [sum(column) for column in zip(*self.connections.exchange(self.me, list(counts)), strict=True)]

    def gather(self, given):
        if not self.sharded:
            return given
        found = self.connections.exchange(self.me, given)
        assert len({f.dtype for f in found}) == 1
        self.connections.bytes[self.me] += sum(f.nbytes for f in found) + 8 * len(found)
        return torch.cat(found)


def parts_of(shape, grid, copies):
    """A tensor cut into a grid of blocks as DTensor cuts it; each block is held by ``copies`` processes."""
    parts = []
    cuts_by_dim = []
    for n, k in zip(shape, grid, strict=True):
        step = math.ceil(n / k)
        cuts_by_dim.append([(min(i * step, n), min((i + 1) * step, n)) for i in range(k)])

    def walk(chosen):
        if len(chosen) == len(shape):
            part = Part(tuple(shape), tuple(e - s for s, e in chosen), tuple(s for s, _ in chosen))
            parts.extend([part] * copies)
            return
        for span in cuts_by_dim[len(chosen)]:
            walk([*chosen, span])

    walk([])
    return parts


@st.composite
def splits(draw, shapes):
    """The parts of some tensors that each of 1 to 6 processes holds: held[process][tensor]."""
    size = draw(st.sampled_from([1, 2, 3, 4, 6]))
    by_tensor = []
    for shape in shapes:
        copies = draw(st.sampled_from([c for c in (1, 2, 3) if size % c == 0]))
        grid = [1] * len(shape)
        if shape:
            ways = size // copies
            first = draw(st.sampled_from([d for d in range(1, ways + 1) if ways % d == 0]))
            grid[draw(st.integers(0, len(shape) - 1))] *= first
            grid[draw(st.integers(0, len(shape) - 1))] *= ways // first
        else:
            copies = size
        by_tensor.append(draw(st.permutations(parts_of(shape, grid, copies))))
    return [list(of_process) for of_process in zip(*by_tensor, strict=True)]


def together(held, work):
    """Run `work(processes, parts)` of all processes at once; return their results and the bytes each exchanged."""
    connections = Connections(len(held))

    def one(me):
        try:
            return work(Threads(connections, held, me), held[me])
        except BaseException:
            connections.barrier.abort()
            raise

    with ThreadPoolExecutor(len(held)) as pool:
        return list(pool.map(one, range(len(held)))), connections.bytes


def layers_of(parts, thetas, grads, owned, orders):
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in thetas) else torch.float32
    layers = []
    for i, (part, theta, grad, order) in enumerate(zip(parts, thetas, grads, orders, strict=True)):
        layout = Layout(part, order)
        flat = [None if t is None else layout.flat(part.cut_from(t)).contiguous() for t in (theta, grad)]
        layers.append(Layer(f"w{i}", layout, *flat, dtype, 1.0, owned[i]))
    return layers


def run(held, thetas, grads, masks, select, orders):
    """The marks of all processes, assembled; a part must be the same on all processes that hold it."""

    def work(processes, parts):
        layers = layers_of(parts, thetas, grads, processes.owned, orders)
        active = [la.layout.flat(p.cut_from(m)).clone() for la, p, m in zip(layers, parts, masks, strict=True)]
        chosen = select(layers, active, processes)
        return [layer.layout.shaped(m) for layer, m in zip(layers, chosen, strict=True)]

    chosen, sent = together(held, work)
    full = [torch.zeros(m.shape, dtype=torch.uint8) for m in masks]
    for parts, marks in zip(held, chosen, strict=True):
        for part, f, m in zip(parts, full, marks, strict=True):
            part.cut_from(f).copy_(m.view(torch.uint8))
    for parts, marks in zip(held, chosen, strict=True):
        for part, f, m in zip(parts, full, marks, strict=True):
            assert torch.equal(part.cut_from(f), m.view(torch.uint8))
    return [f.bool() for f in full], sent


@st.composite
def orders_of(draw, thetas):
    return [tuple(draw(st.permutations(range(t.ndim)))) for t in thetas]


@pytest.mark.parametrize("sizes", [(1 << 18, 1 << 14, 1 << 7), (7, 3, 3), (3, 16, 8)], ids=str)
@given(model=models(), data=st.data())
def test_any_chain_on_any_parts(sizes, model, data):
    thetas, grads, masks = zip(*model, strict=True)
    names = data.draw(st.lists(st.sampled_from(["magnitude", "gradient"]), min_size=1, max_size=2))
    chain = list(zip(names, quotas(data, sum(int(m.sum()) for m in masks), len(names)), strict=True))
    held = data.draw(splits([t.shape for t in thetas]))
    topk = [TopK(SCORES[name], quota) for name, quota in chain]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "BLOCK_SIZE", sizes[0])
        patch.setattr(kth, "DISTRIBUTED_SAMPLE_SIZE", sizes[1])
        patch.setattr(kth, "DISTRIBUTED_LAYER_SAMPLE_SIZE", sizes[2])
        found, _ = run(
            held,
            thetas,
            grads,
            masks,
            lambda *given: run_chain(*given[:2], topk, given[2]),
            data.draw(orders_of(thetas)),
        )
    expected = expected_marks(thetas, grads, masks, chain)
    assert all(map(torch.equal, found, expected))


@given(model=models(infinite=False), data=st.data())
def test_exchanges_and_random_scores_on_any_parts(model, data):
    thetas, grads, masks = zip(*model, strict=True)
    held = data.draw(splits([t.shape for t in thetas]))
    exchange = Exchange(
        data.draw(st.floats(0, 1)), drop=magnitude, grow=data.draw(st.sampled_from([gradient, random(3, 5)]))
    )
    orders = data.draw(orders_of(thetas))

    def select(layers, active, processes):
        return run_exchange(layers, active, exchange, processes)

    whole = [[Part.of(t) for t in thetas]]
    found, _ = run(held, thetas, grads, masks, select, orders)
    expected, _ = run(whole, thetas, grads, masks, select, orders)
    assert all(map(torch.equal, found, expected))
    assert [int(m.sum()) for m in found] == [int(m.sum()) for m in masks]


def test_nan_is_refused_on_every_process():
    theta = torch.tensor([[1.0, math.nan], [2.0, math.nan]])
    held = [[part] for part in parts_of(theta.shape, (2, 1), 1)]

    def work(processes, parts):
        layers = layers_of(parts, [theta], [None], processes.owned, [(0, 1)])
        with pytest.raises(ValueError, match="'magnitude' is NaN for 2 of the 4 weights"):
            run_chain(layers, [torch.ones(2, dtype=torch.bool)], [TopK(magnitude, 3)], processes)
        return True

    assert together(held, work)[0] == [True, True]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_global_update_sends_does_not_grow_with_the_model(ties, dtype):
    """A process exchanges at most a megabyte, or 8 kilobytes for each layer if layers are ranked separately."""
    torch.manual_seed(0)
    thetas = [torch.randn(600, 700, dtype=dtype), torch.randn(64, 4000, dtype=dtype)]
    grads = [torch.randn_like(t) for t in thetas]
    if ties:
        thetas, grads = [t.mul(20).round() for t in thetas], [g.relu() for g in grads]
    masks = [torch.rand(t.shape) < 0.9 for t in thetas]
    total = sum(int(m.sum()) for m in masks)
    held = [list(parts) for parts in zip(*(parts_of(t.shape, (4, 1), 1) for t in thetas), strict=True)]

    def fggp(layers, active, processes):
        count = processes.sum([sum(int(m.sum()) for m in active)])[0]
        return run_chain(layers, active, [TopK(gradient, count // 2), TopK(magnitude, count // 9)], processes)

    found, sent = run(held, thetas, grads, masks, fggp, [(0, 1)] * 2)
    alone, _ = run([[Part.of(t) for t in thetas]], thetas, grads, masks, fggp, [(0, 1)] * 2)
    assert all(map(torch.equal, found, alone))
    assert sum(int(m.sum()) for m in found) == total // 9
    assert max(sent) <= 1 << 20
    one = [[parts[0]] for parts in held]
    found, sent = run(one, thetas[:1], grads[:1], masks[:1], fggp, [(0, 1)])
    assert max(sent) <= 8 << 10, sent


@given(shapes(), st.data())
def test_positions_are_indices_in_the_full_tensor(shape, data):
    [[part], *_] = data.draw(splits([shape]))
    order = tuple(data.draw(st.permutations(range(len(shape)))))
    layout = Layout(part, order)
    everywhere = torch.arange(math.prod(shape)).view(shape)
    n = math.prod(part.shape)
    assert layout.position(torch.arange(n)).tolist() == layout.flat(part.cut_from(everywhere)).tolist()


def test_a_score_of_half_precision_is_not_converted_before_ranking():
    half = Score("half", lambda block: block.weight.half())
    theta = torch.tensor([[1.0, 1.0001], [0.5, 2.0]])
    held = [[part] for part in parts_of(theta.shape, (1, 2), 1)]
    for k in range(1, 4):
        found, _ = run(
            held,
            [theta],
            [None],
            [torch.ones(2, 2, dtype=torch.bool)],
            lambda layers, active, processes, k=k: run_chain(layers, active, [TopK(half, k)], processes),
            [(0, 1)],
        )
        order = [2, 0, 1, 3]  # 1.0001 is 1 in half precision: position decides
        assert found[0].flatten().nonzero().flatten().tolist() == sorted(order[:k])
