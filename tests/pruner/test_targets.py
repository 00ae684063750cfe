"""Floors and several targets: exact totals, and the choice of slow references."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fggp
import helpers
import reference
from fggp.schedule import apportion

# Coarse values, so that many tie.
layers = st.lists(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=12), min_size=1, max_size=5
)


def after_one_update(values, sparsity, **options):
    """The masks after one update that prunes to a sparsity at once, and the weights that it ranked."""
    model = nn.Module()
    for i, layer in enumerate(values):
        linear = nn.Linear(len(layer), 1, bias=False)
        # An eighth is added, so that no weight is zero and none changes its rank.
        linear.weight.data = torch.tensor([[theta + 0.125 for theta, _ in layer]])
        linear.weight.grad = torch.tensor([[g + 0.125 for _, g in layer]])
        model.add_module(f"layer{i}", linear)
    parameters = list(model.parameters())
    grads = [p.grad.clone() for p in parameters]
    ranked = reference.weights_of(
        [p.detach().clone() for p in parameters], grads, [torch.ones(p.shape, dtype=torch.bool) for p in parameters]
    )
    optimizer = torch.optim.SGD(parameters, lr=0)
    pruner = fggp.Pruner(model, optimizer, sparsity, begin=0, end=1, every=1, **options)
    optimizer.step()
    return [m.reshape(-1).tolist() for m in pruner.masks.values()], ranked


def kept_of(pruned, values):
    gone = {(w.layer, w.position) for w in pruned}
    return [[(i, j) not in gone for j in range(len(layer))] for i, layer in enumerate(values)]


def floors_of(values, floor):
    return [min(len(layer), floor) for layer in values]


@pytest.mark.filterwarnings("ignore:no weight is left")
@given(layers, st.floats(0, 0.99), st.integers(0, 4))
def test_with_one_score_the_lowest_ranked_go_whose_layer_is_above_its_floor(values, sparsity, floor):
    total = sum(map(len, values))
    active, floors = reference.active_count(sparsity, total), floors_of(values, floor)
    if sum(floors) > active:
        with pytest.raises(ValueError, match=r"floor=.* keeps"):
            after_one_update(values, sparsity, method="gmp", floor=floor)
        return
    masks, ranked = after_one_update(values, sparsity, method="gmp", floor=floor)
    left, pruned = [len(layer) for layer in values], []
    for w in sorted(ranked, key=reference.by_magnitude):
        if len(pruned) < total - active and left[w.layer] > floors[w.layer]:
            pruned.append(w)
            left[w.layer] -= 1
    assert masks == kept_of(pruned, values)


@pytest.mark.filterwarnings("ignore:no weight is left")
@given(layers, st.floats(0, 0.99), st.integers(0, 4), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_with_a_chain_layers_below_their_floor_are_pruned_apart(values, sparsity, floor, rate):
    total = sum(map(len, values))
    active, floors = reference.active_count(sparsity, total), floors_of(values, floor)
    if sum(floors) > active:
        return
    masks, ranked = after_one_update(values, sparsity, method=fggp.FGGP(rate), floor=floor)
    together, excess, pruned = set(range(len(values))), total - active, []
    while True:
        chosen = reference.choose(("fggp", rate), [w for w in ranked if w.layer in together], excess)
        low = {i for i in together if len(values[i]) - sum(w.layer == i for w in chosen) < floors[i]}
        if not low:
            break
        for i in low:
            own = [w for w in ranked if w.layer == i]
            pruned += reference.choose(("fggp", rate), own, len(own) - floors[i])
            excess -= len(own) - floors[i]
        together -= low
    assert masks == kept_of([*pruned, *chosen], values)
    assert sum(map(sum, masks)) == active
    assert all(sum(mask) >= least for mask, least in zip(masks, floors, strict=True))


@pytest.mark.filterwarnings("ignore:no weight is left")
@given(layers.filter(lambda values: len(values) > 1), st.floats(0, 0.99), st.floats(0, 0.99))
def test_each_target_is_a_ranking_of_its_own(values, first, rest):
    masks, ranked = after_one_update(values, {"layer0.*": first, "*": rest}, method="fggp")
    groups = [[w for w in ranked if w.layer == 0], [w for w in ranked if w.layer > 0]]
    pruned = []
    for group, sparsity in zip(groups, (first, rest), strict=True):
        pruned += reference.choose(("fggp", 0.5), group, len(group) - reference.active_count(sparsity, len(group)))
    assert masks == kept_of(pruned, values)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6), st.data())
def test_apportion_respects_floors_and_caps(parts, data):
    shares, caps, floors = zip(*((s, max(a, b), min(a, b)) for s, a, b in parts), strict=True)
    total = data.draw(st.integers(sum(floors), sum(caps)))
    split = apportion(total, shares, caps, floors)
    assert sum(split) == total
    assert all(low <= n <= high for n, low, high in zip(split, floors, caps, strict=True))
    # Between two layers that are neither at floor nor at cap, the rounded proportions hold.
    free = [i for i in range(len(parts)) if floors[i] < split[i] < caps[i]]
    for i in free:
        for j in free:
            assert (split[i] - 1) * shares[j] <= (split[j] + 1) * shares[i]
    for outside in (sum(floors) - 1, sum(caps) + 1):
        with pytest.raises(ValueError, match="must lie in"):
            apportion(outside, shares, caps, floors)


@pytest.mark.parametrize("floor", [True, "1", -1, 1.5, -0.1])
def test_wrong_floors_are_refused(floor):
    model = helpers.mlp()
    optimizer = helpers.sgd(model)
    with helpers.untouched(model, optimizer), pytest.raises((TypeError, ValueError), match="floor="):
        helpers.make_pruner(model, optimizer, floor=floor)
