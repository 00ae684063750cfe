"""Groups and patterns select what the reference does: any shape, grid, layout and sharding, with many ties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
import test_sharded
from cases import KEYS, SCORES
from fggp.scores import gradient, magnitude, random
from fggp.selection import chains, groups, kth, passes
from fggp.selection.chains import Exchange, TopK, keep_smallest, prune, run_chain, run_exchange
from fggp.selection.groups import by_value, in_groups, of_weights
from fggp.weights.dtensor import Part
from fggp.weights.grid import Grid
from fggp.weights.layers import Layer, Layout
from tensors import models


@st.composite
def grids(draw, shapes, limit=None):
    """A grid for each shape: any steps, or with a limit, steps along one dimension."""
    found = []
    for shape in shapes:
        steps = [draw(st.sampled_from([1, 1, 2, 3, 4, n])) for n in shape]
        if limit is not None:
            along = draw(st.integers(0, len(shape) - 1))
            steps = [4 if d == along else 1 for d in range(len(shape))]
        found.append(Grid(tuple(shape), tuple(steps), limit))
    return found


def whole_groups(masks, grids):
    """Masks that keep the groups whose first weight they kept."""
    found = []
    for mask, grid in zip(masks, grids, strict=True):
        kept = torch.zeros_like(mask)
        for cell in reference.cells(mask.shape, grid.steps):
            kept.view(-1)[[p for p, _ in cell]] = mask.reshape(-1)[cell[0][0]]
        found.append(kept)
    return found


def marks_of(chosen, masks, grids=None):
    """The marks of some weights, or groups of them."""
    marks = [torch.zeros(m.shape, dtype=torch.bool) for m in masks]
    for w in chosen:
        cell = [w.position]
        if grids is not None:
            cell = [p for p, _ in reference.cells(masks[w.layer].shape, grids[w.layer].steps)[w.position]]
        marks[w.layer].view(-1)[cell] = True
    return marks


def with_grids(layers, grids):
    return [Layer(**{**vars(layer), "grid": grid}) for layer, grid in zip(layers, grids, strict=True)]


def run(held, model, grids, select, orders):
    """The marks that ``select(layers, active, processes)`` returns on some processes, assembled."""
    return test_sharded.run(
        held, *model, lambda layers, active, processes: select(with_grids(layers, grids), active, processes), orders
    )[0]


def quotas(data, count, steps):
    return sorted((data.draw(st.integers(0, count)) for _ in range(steps)), reverse=True)


@st.composite
def settings(draw, limit=None, infinite=True):
    """A model, its grids, the parts that processes hold, and memory orders."""
    thetas, grads, masks = zip(*draw(models(infinite=infinite)), strict=True)
    found = draw(grids([t.shape for t in thetas], limit))
    if limit is None:
        masks = whole_groups(masks, found)
    held = draw(test_sharded.splits([t.shape for t in thetas]))
    return (list(thetas), list(grads), list(masks)), found, held, draw(test_sharded.orders_of(thetas))


@pytest.fixture(params=[(1 << 18, 1 << 18, 1 << 14, 32), (7, 4, 3, 2)], ids=str)
def sizes(request, monkeypatch):
    """Sizes of blocks, pieces and samples, and the extent of sums by slices: the real ones, and small ones."""
    monkeypatch.setattr(passes, "BLOCK_SIZE", request.param[0])
    monkeypatch.setattr(groups, "PIECE_SIZE", request.param[1])
    monkeypatch.setattr(kth, "DISTRIBUTED_SAMPLE_SIZE", request.param[2])
    monkeypatch.setattr(kth, "DISTRIBUTED_LAYER_SAMPLE_SIZE", request.param[2])
    monkeypatch.setattr(groups, "SHORT", request.param[3])


def chain_on_groups(topk):
    def select(layers, active, processes):
        units, marked = in_groups(layers, active, processes)
        return of_weights(units, run_chain(units, marked, topk, processes))

    return select


@pytest.mark.usefixtures("sizes")
@given(setting=settings(), data=st.data())
def test_a_chain_of_steps_on_groups(setting, data):
    model, grids, held, orders = setting
    thetas, grads, masks = model
    double = any(t.dtype == torch.float64 for t in thetas)
    shapes, steps = [t.shape for t in thetas], [g.steps for g in grids]
    ranked = reference.groups_of(reference.weights_of(thetas, grads, masks), shapes, steps, double)
    names = data.draw(st.lists(st.sampled_from(["magnitude", "gradient"]), min_size=1, max_size=3))
    chain = list(zip(names, quotas(data, len(ranked), len(names)), strict=True))
    for name, quota in chain:
        ranked = reference.smallest(ranked, quota, KEYS[name])
    select = chain_on_groups([TopK(SCORES[name], quota) for name, quota in chain])
    assert all(map(torch.equal, run(held, model, grids, select, orders), marks_of(ranked, masks, grids)))


@given(setting=settings(infinite=False), data=st.data())
def test_saliency_of_groups(setting, data):
    model, grids, held, orders = setting
    thetas, grads, masks = model
    double = any(t.dtype == torch.float64 for t in thetas)
    weights = reference.weights_of(thetas, grads, masks)
    ranked = reference.groups_of(weights, [t.shape for t in thetas], [g.steps for g in grids], double, product=True)
    k = data.draw(st.integers(0, len(ranked)))
    expected = marks_of(reference.smallest(ranked, k, reference.by_magnitude), masks, grids)
    select = chain_on_groups([TopK(SCORES["saliency"], k)])
    assert all(map(torch.equal, run(held, model, grids, select, orders), expected))


@given(setting=settings(), data=st.data())
def test_groups_on_one_gpu(setting, data):
    model, grids, _, orders = setting
    thetas, grads, masks = model
    double = any(t.dtype == torch.float64 for t in thetas)
    shapes, steps = [t.shape for t in thetas], [g.steps for g in grids]
    ranked = reference.groups_of(reference.weights_of(thetas, grads, masks), shapes, steps, double)
    k = data.draw(st.integers(0, len(ranked)))
    expected = marks_of(reference.smallest(ranked, k, reference.by_gradient), masks, grids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chains, "_on_one_gpu", lambda tensors: True)
        found = run([[Part.of(t) for t in thetas]], model, grids, chain_on_groups([TopK(gradient, k)]), orders)
    assert all(map(torch.equal, found, expected))


@given(setting=settings(infinite=False), share=st.floats(0, 1), grow=st.sampled_from([gradient, random(3, 5)]))
def test_groups_are_exchanged_as_a_whole_on_any_parts(setting, share, grow):
    model, grids, held, orders = setting
    _, _, masks = model
    exchange = Exchange(share, drop=magnitude, grow=grow)

    def select(layers, active, processes):
        units, marked = in_groups(layers, active, processes)
        return of_weights(units, run_exchange(units, marked, exchange, processes))

    found = run(held, model, grids, select, orders)
    assert all(map(torch.equal, found, whole_groups(found, grids)))
    alone = run([[Part.of(m) for m in masks]], model, grids, select, [tuple(range(m.ndim)) for m in masks])
    assert all(map(torch.equal, found, alone))

    def count(marks):
        cells = [reference.cells(m.shape, g.steps) for m, g in zip(marks, grids, strict=True)]
        return [sum(bool(m.reshape(-1)[c[0][0]]) for c in own) for m, own in zip(marks, cells, strict=True)]

    assert count(found) == count(masks)


@given(setting=settings(limit=2), data=st.data())
def test_what_exceeds_a_pattern_is_pruned_first(setting, data):
    model, grids, held, orders = setting
    thetas, grads, masks = model
    weights = reference.weights_of(thetas, grads, masks)
    target = data.draw(st.integers(0, len(weights)))
    method, rate = data.draw(st.sampled_from(["fggp", "gmp", "gradient-only"])), 0.5

    def chain(active, left):
        excess = active - left
        if method == "fggp":
            return [TopK(gradient, max(excess, math.floor(rate * active))), TopK(magnitude, excess)]
        return [TopK(magnitude if method == "gmp" else gradient, excess)]

    def select(layers, active, processes):
        return prune(layers, active, len(weights), target, chain, processes)

    shapes, steps = [t.shape for t in thetas], [g.steps for g in grids]
    expected = reference.choose_in_pattern((method, rate), weights, len(weights) - target, shapes, steps, 2)
    found = run(held, model, grids, select, orders)
    assert all(map(torch.equal, found, marks_of(expected, masks)))


def most_in_a_group(marks, grids):
    return max(
        sum(bool(mask.reshape(-1)[p]) for p, _ in cell)
        for mask, grid in zip(marks, grids, strict=True)
        for cell in reference.cells(mask.shape, grid.steps)
    )


@given(setting=settings(limit=2, infinite=False), share=st.floats(0, 1), grow=st.sampled_from([gradient, random(3, 5)]))
def test_an_exchange_keeps_to_a_pattern(setting, share, grow):
    model, grids, held, orders = setting
    thetas, grads, masks = model
    exchange = Exchange(share, drop=magnitude, grow=grow)

    def select(layers, active, processes):
        return run_exchange(layers, active, exchange, processes)

    # The weights that a pattern allows, from which exchanges go on.
    shapes, steps = [t.shape for t in thetas], [g.steps for g in grids]
    weights = reference.weights_of(thetas, grads, masks)
    exceeding = reference.surplus(weights, shapes, steps, 2, reference.by_magnitude)
    masks = marks_of([w for w in weights if w not in exceeding], masks)
    found = run(held, (thetas, grads, masks), grids, select, orders)
    assert most_in_a_group(found, grids) <= 2
    assert [int(m.sum()) for m in found] == [int(m.sum()) for m in masks]
    alone = run(
        [[Part.of(m) for m in masks]], (thetas, grads, masks), grids, select, [tuple(range(m.ndim)) for m in masks]
    )
    assert all(map(torch.equal, found, alone))
    if share == 1 and grow is gradient:  # everything is dropped: each group's largest gradients grow, as room allows
        for i, mask in enumerate(masks):
            everything = [
                w for w in reference.weights_of(thetas, grads, [torch.ones_like(m) for m in masks]) if w.layer == i
            ]

            def key(w):
                return (-abs(w.grad), -abs(w.theta), w.position)

            best = [
                w
                for cell in reference.cells(mask.shape, grids[i].steps)
                for w in sorted((everything[p] for p, _ in cell), key=key)[:2]
            ]
            assert torch.equal(found[i], marks_of(sorted(best, key=key)[: int(mask.sum())], masks)[i])


@given(setting=settings(limit=2), data=st.data())
def test_an_exchange_before_the_pattern_holds_fills_no_group_further(setting, data):
    model, grids, held, orders = setting
    _, _, masks = model
    exchange = Exchange(data.draw(st.floats(0, 1)), drop=random(1, 1), grow=random(3, 5))
    found = run(held, model, grids, lambda *given: run_exchange(*given[:2], exchange, given[2]), orders)
    assert [int(m.sum()) for m in found] == [int(m.sum()) for m in masks]
    for old, new, grid in zip(masks, found, grids, strict=True):
        for cell in reference.cells(old.shape, grid.steps):
            before, after = (sum(bool(m.reshape(-1)[p]) for p, _ in cell) for m in (old, new))
            assert after <= max(2, before)


@pytest.mark.parametrize("limit", [None, 2])
@given(data=st.data())
def test_the_lowest_are_kept_in_whole_groups_or_a_pattern(limit, data):
    model, grids, held, orders = data.draw(settings(limit=limit))
    thetas, grads, masks = model
    shapes, steps = [t.shape for t in thetas], [g.steps for g in grids]
    weights = reference.weights_of(thetas, grads, masks)
    double = any(t.dtype == torch.float64 for t in thetas)
    units = weights if limit else reference.groups_of(weights, shapes, steps, double)
    k = data.draw(st.integers(0, len(units)))
    found = run(held, model, grids, lambda *given: keep_smallest(*given[:2], gradient, k, given[2]), orders)
    if limit is None:
        expected = marks_of(reference.smallest(units, k, reference.by_gradient), masks, grids)
    else:
        first = []
        for layer, (shape, step) in enumerate(zip(shapes, steps, strict=True)):
            for cell in reference.cells(shape, step):
                own = [w for w in weights if w.layer == layer and w.position in {p for p, _ in cell}]
                first += reference.smallest(own, 2, reference.by_gradient)
        rest = [w for w in weights if w not in first]
        chosen = reference.smallest(first, k, reference.by_gradient)
        chosen += reference.smallest(rest, max(0, k - len(first)), reference.by_gradient)
        expected = marks_of(chosen, masks)
    assert all(map(torch.equal, found, expected))


def test_a_random_score_of_groups_depends_on_their_number_in_the_weight():
    """Not on how many weights they have, so that a shorter group is as likely to stay as others."""
    grid = Grid((4, 6), (1, 4))
    layer = Layer("w", Layout(Part.of(torch.empty(4, 6)), (0, 1)), torch.randn(24), None, grid=grid)
    units, marks = in_groups([layer], [torch.ones(24, dtype=torch.bool)])
    other = Layer("w", Layout(Part.of(torch.empty(4, 2)), (0, 1)), torch.randn(8), None)
    [found] = run_chain(units, marks, [TopK(random(1, 2), 3)])
    [expected] = run_chain([other], [torch.ones(8, dtype=torch.bool)], [TopK(random(1, 2), 3)])
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("sizes")
@given(data=st.data(), shape=st.sampled_from([(3, 10), (2, 9, 3, 3), (12, 5), (70,), (4, 1, 7)]))
def test_means_to_the_last_bit(data, shape):
    """Sums are rounded, so their order shows: it is the same in every memory layout, and that of the reference."""
    [grid] = data.draw(grids([shape]))
    theta = torch.randn(shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    layout = Layout(Part.of(theta), tuple(data.draw(st.permutations(range(theta.ndim)))))
    layer = Layer("w", layout, layout.flat(theta).contiguous(), None, grid=grid)
    units, _ = in_groups([layer], [torch.ones(len(layer), dtype=torch.bool)])
    [unit], value = by_value(units, magnitude)
    found = unit.layout.shaped(value.of(unit.block(0, len(unit)))).reshape(-1).tolist()
    weights = reference.weights_of([theta], [None], [torch.ones(shape, dtype=torch.bool)])
    assert found == [w.theta for w in reference.groups_of(weights, [shape], [grid.steps])]
