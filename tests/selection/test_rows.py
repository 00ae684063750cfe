"""Directions of weight norm: no row loses its last weight, and counts stay exact; compared with one row at a time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fggp.selection import chains
from fggp.selection.rows import keep_rows, keep_rows_of_masks, least_active, rows_without_weight
from fggp.weights.layers import flatten
from fggp.weights.prunable import Prunable
from tensors import DTYPES, layouts, shapes, values
from test_sharded import parts_of
from test_sharded import run as sharded_run


def row_of(position, shape, norm_dim):
    """The row of a flat position in the full tensor."""
    if norm_dim == -1:
        return 0
    return position // math.prod(shape[norm_dim + 1 :]) % shape[norm_dim]


def one_at_a_time(v, before, after, norm_dim):
    """The same as `keep_rows`, on flat lists: put back, and then prune instead, a single weight at a time."""
    shape, v = v.shape, [abs(x) for x in v.double().flatten().tolist()]
    before, active = before.flatten().tolist(), after.flatten().tolist()
    rows = {}
    for i in range(len(v)):
        rows.setdefault(row_of(i, shape, norm_dim), []).append(i)
    owed = 0
    for row in rows.values():
        lost = [i for i in row if before[i] and not active[i] and v[i] > 0]
        if lost and not any(active[i] and v[i] > 0 for i in row):
            active[max(lost, key=lambda i: (v[i], i))] = True
            owed += 1
    while owed:
        spare = [i for row in rows.values() if sum(active[i] for i in row) > 1 for i in row if active[i]]
        active[min(spare, key=lambda i: (v[i], i))] = False
        owed -= 1
    return torch.tensor(active).view(shape)


@st.composite
def directions(draw):
    """A direction, its active weights before and after a selection, and the dimension of its rows."""
    shape = draw(shapes())
    v = draw(layouts(draw(values(shape, draw(st.sampled_from(DTYPES))))))
    norm_dim = draw(st.sampled_from([-1, *range(len(shape))]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    before = torch.rand(shape, generator=generator) < draw(st.sampled_from([1.0, 1.0, 0.7]))
    after = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.9, 0.4, 0.2]))
    if draw(st.booleans()):  # otherwise some are regrown
        after &= before
    return v, before, after, norm_dim


def run(v, before, after, norm_dim, name="v"):
    weight = Prunable(name, nn.Parameter(v), [], norm_dim=norm_dim)
    layers = flatten([weight])
    flat = [[layers[0].layout.flat(m).clone() for m in (before, after)]]
    [kept] = keep_rows([weight], layers, [flat[0][0]], [flat[0][1]])
    assert torch.equal(flat[0][1], layers[0].layout.flat(after))  # not modified
    return layers[0].layout.shaped(kept.contiguous()), weight


@given(directions())
def test_as_one_row_at_a_time(drawn):
    v, before, after, norm_dim = drawn
    rows = 1 if norm_dim == -1 else v.shape[norm_dim]
    expected = one_at_a_time(v, before, after, norm_dim) if int(after.sum()) >= rows else None
    if expected is None:
        lost = [
            r
            for r in range(rows)
            if (row := torch.tensor([row_of(i, v.shape, norm_dim) == r for i in range(v.numel())]).view(v.shape)).any()
            and (before & row & (v != 0)).any()
            and not (after & row & (v != 0)).any()
        ]
        if lost:
            with pytest.raises(ValueError, match=f"fewer than its {rows} rows"):
                run(v, before, after, norm_dim)
        return
    kept, weight = run(v, before, after, norm_dim)
    assert torch.equal(kept, expected)
    assert int(kept.sum()) == int(after.sum())
    assert least_active(weight) == rows


@given(directions())
def test_what_weight_norm_computes_is_finite_where_it_was(drawn):
    v, before, after, norm_dim = drawn
    v = v.double().nan_to_num().clamp(-1e3, 1e3)
    v[v.abs() < 1e-3] = 0  # squares of less would vanish
    rows = 1 if norm_dim == -1 else v.shape[norm_dim]
    if int(after.sum()) < rows:
        return

    def used(mask):
        return torch._weight_norm(v * mask, torch.ones_like(torch.norm_except_dim(v, 2, norm_dim)), norm_dim)

    kept, _ = run(v, before, after, norm_dim)
    was_finite, is_finite = used(before).isfinite(), used(kept).isfinite()
    assert is_finite[was_finite].all()


def in_processes(v, before, after, norm_dim, blocks, copies, order):
    """The result of processes that hold one of some blocks of rows each, in some number of copies."""
    grid = [blocks if d == norm_dim else 1 for d in range(v.ndim)]
    parts = parts_of(v.shape, grid, copies)
    weight = Prunable("v", nn.Parameter(v), [], norm_dim=norm_dim)

    def select(layers, marks, processes):
        return [marks[0], keep_rows([weight], layers[:1], marks[:1], marks[1:], processes)[0].contiguous()]

    # The second layer stands for the marks after the selection only.
    found, _ = sharded_run([[p, p] for p in parts], [v, v], [None, None], [before, after], select, [order] * 2)
    return found[1]


@given(directions(), st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2]), st.data())
def test_processes_that_hold_whole_rows_do_what_one_does(drawn, blocks, copies, data):
    v, before, after, norm_dim = drawn
    if int(after.sum()) < (1 if norm_dim == -1 else v.shape[norm_dim]):
        return
    order = tuple(data.draw(st.permutations(range(v.ndim))))
    found = in_processes(v, before, after, norm_dim, blocks, copies, order)
    assert torch.equal(found, one_at_a_time(v, before, after, norm_dim))


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("blocks", [1, 2, 4, 5])
def test_rows_are_lost_in_several_processes(blocks, copies):
    v = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    after = torch.ones(6, 5, dtype=torch.bool)
    after[1] = after[4] = after[5] = False
    found = in_processes(v, torch.ones_like(after), after, 0, blocks, copies, (0, 1))
    assert found.sum() == after.sum()
    assert found.any(1).all()
    assert torch.equal(found, one_at_a_time(v, torch.ones_like(after), after, 0))


@given(directions())
def test_on_one_gpu(drawn):
    """Where all weights lie on one GPU, all layers are selected from at once."""
    v, before, after, norm_dim = drawn
    if int(after.sum()) < (1 if norm_dim == -1 else v.shape[norm_dim]):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chains, "_on_one_gpu", lambda tensors: True)
        kept, _ = run(v, before, after, norm_dim)
    assert torch.equal(kept, one_at_a_time(v, before, after, norm_dim))


def test_other_weights_are_left_as_they_are():
    plain = Prunable("plain", nn.Parameter(torch.randn(4, 3)), [])
    empty = torch.zeros(12, dtype=torch.bool)
    [kept] = keep_rows([plain], flatten([plain]), [~empty], [empty])
    assert kept is empty
    assert least_active(plain) == 0


def test_each_layer_by_itself():
    """The weight that makes room comes from the same layer, even where another has smaller ones."""
    weights = [
        Prunable("a", nn.Parameter(torch.tensor([[3.0, 2.0], [1.0, 0.5]])), [], norm_dim=0),
        Prunable("b", nn.Parameter(torch.full((2, 2), 0.01)), [], norm_dim=0),
    ]
    after = [torch.tensor([True, True, False, False]), torch.ones(4, dtype=torch.bool)]
    kept = keep_rows(weights, flatten(weights), [torch.ones(4, dtype=torch.bool)] * 2, after)
    assert kept[0].tolist() == [True, False, True, False]
    assert kept[1] is after[1]


def test_a_layer_with_fewer_weights_than_rows_is_refused():
    weight = Prunable("head.v", nn.Parameter(torch.ones(3, 2)), [], norm_dim=0)
    after = torch.tensor([True, True, False, False, False, False])
    told = "2 weights of 'head.v' would stay, fewer than its 3 rows. Each row needs one"
    with pytest.raises(ValueError, match=told):
        keep_rows([weight], flatten([weight]), [torch.ones(6, dtype=torch.bool)], [after])


def test_nan_counts_as_the_largest():
    v = torch.tensor([[math.nan, 1.0], [2.0, 3.0]])
    kept, _ = run(v, torch.ones(2, 2).bool(), torch.tensor([[False, False], [True, True]]), 0)
    assert kept.tolist() == [[True, False], [False, True]]


class TestMasks:
    def test_of_a_dense_model(self):
        weights = [
            Prunable("a", nn.Parameter(torch.arange(1.0, 7.0).view(2, 3).t()), [], norm_dim=1),
            Prunable("plain", nn.Parameter(torch.ones(2)), []),
        ]
        masks = [torch.tensor([[True, False], [True, False], [False, False]]), torch.zeros(2, dtype=torch.bool)]
        assert rows_without_weight(weights, masks) == {"a": 1}
        kept = keep_rows_of_masks(weights, masks)
        assert kept[0].tolist() == [[False, False], [True, False], [False, True]]
        assert torch.equal(kept[1], masks[1])
        assert rows_without_weight(weights, kept) == {}
