"""Starting masks: ERK, uniform, given by the user, or the non-zero weights of the model."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import fggp
import helpers
import reference
from fggp.masks.starts import erk, random_masks, starting_masks, tensors_of_zeros, uniform
from fggp.model.find import find_prunable
from tensors import laid_out, prunables, shapes


def naive_erk(shapes_, density):
    """The densities of Evci et al. 2020, in floats: ε·(sum of dims)/(product of dims); layers above 1 are dense."""
    dense = set()
    while True:
        active = density * sum(map(math.prod, shapes_)) - sum(math.prod(shapes_[i]) for i in dense)
        rest = [i for i in range(len(shapes_)) if i not in dense]
        if not rest:
            return [1.0] * len(shapes_)
        epsilon = active / sum(sum(shapes_[i]) for i in rest)
        densities = [1.0 if i in dense else epsilon * sum(s) / math.prod(s) for i, s in enumerate(shapes_)]
        over = {i for i in rest if densities[i] > 1}
        if not over:
            return densities
        dense |= over


layers = st.lists(shapes(most=400), min_size=1, max_size=6)


@given(layers, st.floats(0, 1))
@example([(64, 3, 3, 3), (64, 64, 3, 3), (10, 64)], 0.5)
@example([(2, 1), (40, 10)], 0.9)
def test_erk_densities_are_those_of_the_formula(shapes_, density):
    total = sum(map(math.prod, shapes_))
    active = round(density * total)
    counts = erk([torch.Size(s) for s in shapes_], active)
    assert sum(counts) == active
    densities = naive_erk(shapes_, active / total)
    for count, d, shape in zip(counts, densities, shapes_, strict=True):
        assert abs(count - d * math.prod(shape)) < 1 + 1e-6


@given(layers, st.floats(0, 1))
def test_uniform_densities_are_all_the_same(shapes_, density):
    sizes = [math.prod(s) for s in shapes_]
    active = round(density * sum(sizes))
    counts = uniform([torch.Size(s) for s in shapes_], active)
    assert counts == reference.share_out(active, sizes, sizes)
    assert all(abs(c - active / sum(sizes) * n) < 1 for c, n in zip(counts, sizes, strict=True))


@given(st.data())
def test_random_masks_do_not_depend_on_layout_or_on_other_layers(data):
    shape = data.draw(shapes())
    n = math.prod(shape)
    assume(n > 1)
    count = data.draw(st.integers(0, n))
    alone, other = prunables([torch.randn(shape), torch.randn(5)], [None, None])
    tensor = laid_out(torch.randn(shape), data.draw(st.permutations(range(len(shape)))), data.draw(st.booleans()))
    (permuted,) = prunables([tensor], [None])
    (mask,) = random_masks([alone], [count], 7)
    assert int(mask.sum()) == count
    assert torch.equal(random_masks([permuted], [count], 7)[0], mask)
    other.name = "another"
    assert torch.equal(random_masks([other, alone], [2, count], 7)[1], mask)


@pytest.mark.parametrize("init", ["erk", "uniform"])
@pytest.mark.parametrize("init_sparsity", [0.0, 0.5, 0.77])
class TestSparseStart:
    def make(self, init, init_sparsity, seed=0, model=None, **options):
        model = helpers.convnet() if model is None else model
        optimizer = helpers.sgd(model)
        options = {"sparsity": 0.9, "init": init, "init_sparsity": init_sparsity, "seed": seed, **options}
        return model, optimizer, helpers.make_pruner(model, optimizer, **options)

    def test_the_total_is_exact_and_the_weights_are_zero_at_once(self, init, init_sparsity):
        _, optimizer, pruner = self.make(init, init_sparsity)
        total = sum(m.numel() for m in pruner.masks.values())
        assert sum(int(m.sum()) for m in pruner.masks.values()) == round((1 - init_sparsity) * total)
        helpers.assert_exactly_zero(pruner, optimizer)

    def test_kept_weights_are_untouched(self, init, init_sparsity):
        model, _, pruner = self.make(init, init_sparsity)
        for p, before, mask in zip(
            helpers.prunable(model), helpers.prunable(helpers.convnet()), pruner.masks.values(), strict=True
        ):
            assert torch.equal(p[mask], before[mask])

    def test_the_seed_decides_the_masks(self, init, init_sparsity):
        masks = [dict(self.make(init, init_sparsity, seed)[2].masks) for seed in (0, 0, 1)]
        assert helpers.identical(masks[0], masks[1])
        assert helpers.identical(masks[0], masks[2]) == (init_sparsity == 0)

    def test_memory_layout_and_weight_values_do_not_matter(self, init, init_sparsity):
        expected = dict(self.make(init, init_sparsity)[2].masks)
        other = helpers.convnet(seed=5).to(memory_format=torch.channels_last)
        assert helpers.identical(dict(self.make(init, init_sparsity, model=other)[2].masks), expected)

    def test_pruning_continues_from_the_starting_masks(self, init, init_sparsity):
        model, optimizer, pruner = self.make(init, init_sparsity)
        start = {name: m.clone() for name, m in pruner.masks.items()}
        counts = []
        for t in range(1, 7):
            helpers.train(model, optimizer, range(t, t + 1))
            helpers.assert_exactly_zero(pruner, optimizer)
            counts.append(sum(int(m.sum()) for m in pruner.masks.values()))
        assert all(not (m & ~start[name]).any() for name, m in pruner.masks.items())
        at = [reference.sparsity(t, 0.9, 0, 6, init_sparsity) for t in (0, 2, 2, 4, 4, 6)]
        assert counts == [round((1 - s) * 436) for s in at]


class TestGivenMasks:
    def masks(self, share=0.6):
        generator = torch.Generator().manual_seed(1)
        weights = helpers.convnet().state_dict()
        return {name: torch.rand(weights[name].shape, generator=generator) < share for name in helpers.CONVNET_WEIGHTS}

    def test_given_masks_are_copied_and_set_init_sparsity(self):
        model, masks = helpers.convnet(), self.masks()
        optimizer = helpers.sgd(model)
        given_ = dict(reversed(masks.items()))  # the order does not matter
        pruner = helpers.make_pruner(model, optimizer, init=given_)
        assert helpers.identical(dict(pruner.masks), masks)
        helpers.assert_exactly_zero(pruner, optimizer)
        active = sum(int(m.sum()) for m in masks.values())
        assert pruner.schedule.init_sparsity == pruner.sparsity == 1 - active / 436
        given_["0.weight"].zero_()
        assert pruner.masks["0.weight"].any()

    def test_an_init_sparsity_that_agrees_is_accepted(self):
        model, masks = helpers.convnet(), self.masks()
        active = sum(int(m.sum()) for m in masks.values())
        pruner = helpers.make_pruner(model, helpers.sgd(model), init=masks, init_sparsity=1 - active / 436)
        assert pruner.sparsity == 1 - active / 436


class TestKeep:
    def test_a_models_own_zeros_are_kept(self):
        model = helpers.convnet()
        with torch.no_grad():
            for p in helpers.prunable(model):
                p.mul_(p.abs() > p.abs().median())
            model[0].weight[0, 0, 0, 0] = -0.0
        expected = [p != 0 for p in helpers.prunable(model)]
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, init="keep")
        assert helpers.identical(list(pruner.masks.values()), expected)
        helpers.assert_exactly_zero(pruner, optimizer)
        assert 0.4 < pruner.sparsity < 0.6

    def test_a_pruned_model_is_fine_tuned_at_its_sparsity(self):
        """Rewinding and fine-tuning: a model at its target sparsity stays exactly there, whatever the sparsity."""
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        first = helpers.make_pruner(model, optimizer, 0.777, end=3, every=1)
        helpers.train(model, optimizer, 4)
        masks, reached = dict(first.masks), first.sparsity
        first.remove()
        again = helpers.sgd(model)
        pruner = helpers.make_pruner(model, again, 0.777, init="keep")
        assert pruner.sparsity == reached
        helpers.train(model, again, 8)
        assert helpers.identical(dict(pruner.masks), masks)

    def test_a_layer_that_was_initialised_with_zeros_is_not_frozen(self):
        """Zero-initialised residual branches: kept at zero, the layer could never train."""
        model = helpers.mlp()
        with torch.no_grad():
            model[2].weight.zero_()
            model[0].weight.mul_(model[0].weight.abs() > 0.1)
        weights = find_prunable(model)
        assert tensors_of_zeros(weights) == ["2.weight"]
        masks = starting_masks(weights, "keep", 0.0, 0)
        assert torch.equal(masks[0], model[0].weight != 0)
        assert masks[1].all()
        assert not masks[0].all()
        optimizer = helpers.sgd(model)
        with pytest.warns(UserWarning, match=r"init='keep' keeps all of '2\.weight'"):
            helpers.make_pruner(model, optimizer, init="keep")
        helpers.train(model, optimizer, 1)
        assert (model[2].weight != 0).all()

    def test_a_dense_model_starts_dense(self):
        model = helpers.mlp()
        assert tensors_of_zeros(find_prunable(model)) == []
        assert helpers.make_pruner(model, helpers.sgd(model), init="keep").sparsity == 0


class TestDirectionsOfWeightNorm:
    """A row without a weight would be divided by a norm of zero."""

    def model(self):
        torch.manual_seed(0)
        return nn.Sequential(weight_norm(nn.Linear(6, 20)), nn.Linear(20, 4))

    @pytest.mark.parametrize("init", ["erk", "uniform"])
    def test_random_masks_keep_a_weight_in_each_row(self, init):
        model = self.model()
        weights = find_prunable(model)
        direction = [w.norm_dim for w in weights].index(0)
        masks = [starting_masks(weights, init, 0.75, seed) for seed in range(20)]
        plain = [starting_masks(plain_twins(weights), init, 0.75, seed) for seed in range(20)]
        assert any(not m[direction].any(1).all() for m in plain)  # otherwise this tests nothing
        for mine, without in zip(masks, plain, strict=True):
            assert mine[direction].any(1).all()
            assert [int(m.sum()) for m in mine] == [int(m.sum()) for m in without]
            assert torch.equal(mine[1 - direction], without[1 - direction])

    def test_fewer_weights_than_rows_are_refused(self):
        with pytest.raises(ValueError, match=r"\d weights of '0.parametrizations.weight.original1' would stay, fewer"):
            starting_masks(find_prunable(self.model()), "uniform", 0.9, 0)

    def test_given_masks_and_zeros_that_empty_a_row_are_refused(self):
        model = self.model()
        weights = find_prunable(model)
        masks = {w.name: torch.ones_like(w.parameter, dtype=torch.bool) for w in weights}
        name = "0.parametrizations.weight.original1"
        masks[name][3:5] = False
        with pytest.raises(ValueError, match=f"init prunes all of 2 rows of '{name}'"):
            starting_masks(weights, masks, 0.0, 0)
        masks[name][3:5, 1] = True
        assert torch.equal(dict(zip(masks, starting_masks(weights, masks, 0.0, 0), strict=True))[name], masks[name])
        with torch.no_grad():
            model[0].parametrizations.weight.original1[7] = 0
        with pytest.raises(ValueError, match=f"init='keep' finds only zeros in 1 rows of '{name}'"):
            starting_masks(weights, "keep", 0.0, 0)


def plain_twins(weights):
    """The same weights as if no weight norm read them."""
    return [replace(w, norm_dim=None) for w in weights]


def test_tied_weights_have_one_given_mask():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    mask = torch.eye(4, dtype=torch.bool)
    pruner = fggp.Pruner(model, helpers.sgd(model), 0.9, begin=0, end=1, every=1, init={"0.weight": mask})
    assert pruner.sparsity == 0.75
    assert torch.equal(model[1].weight != 0, mask)
