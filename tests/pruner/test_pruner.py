"""The Pruner itself: random choices, masks, densities, remove(), its printed table, every method by name."""

import warnings

import pytest
import torch

import fggp
import helpers
from fggp.methods import REGISTRY


@pytest.mark.parametrize("method", [*helpers.GRADUAL, "rigl", "set"])
def test_the_global_generator_is_never_used(method):
    torch.manual_seed(3)
    model = helpers.convnet()
    optimizer = helpers.sgd(model)
    before = torch.get_rng_state()
    pruner = helpers.make_pruner(model, optimizer, method=method, init_sparsity=0.3, floor=1)
    helpers.train(model, optimizer, 7)
    pruner.load_state_dict(pruner.state_dict())
    repr(pruner)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", ["random", "fggp"])
def test_the_seed_decides_what_is_random(method):
    def masks(seed, global_seed):
        model = helpers.convnet()
        torch.manual_seed(global_seed)
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, method=method, init_sparsity=0.5, seed=seed)
        helpers.train(model, optimizer, 7)
        return dict(pruner.masks)

    assert helpers.identical(masks(0, 1), masks(0, 2))
    assert not helpers.identical(masks(0, 1), masks(1, 1))


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_what_regrows_starts_at_exactly_zero_with_zero_state(method):
    model = helpers.convnet()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pruner = helpers.make_pruner(model, optimizer, method=method, every=3)
    helpers.train(model, optimizer, 2)
    before = [m.clone() for m in pruner.masks.values()]
    helpers.train(model, optimizer, range(3, 4))
    for p, old, new in zip(helpers.prunable(model), before, pruner.masks.values(), strict=True):
        grown = new & ~old
        assert grown.any()
        for tensor in (p, optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]):
            assert not helpers.bits(tensor)[grown].any()
    helpers.assert_exactly_zero(pruner, optimizer)


# Masks, remove() and the table


def test_masks_are_read_only_and_plain():
    model = helpers.convnet()
    pruner = helpers.make_pruner(model, helpers.sgd(model))
    assert {n: m.numel() for n, m in pruner.masks.items()} == helpers.CONVNET_WEIGHTS
    assert all(m.dtype == torch.bool and type(m) is torch.Tensor for m in pruner.masks.values())
    with pytest.raises(TypeError):
        pruner.masks["0.weight"] = None


class TestRemove:
    @pytest.fixture
    def removed(self):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer)
        helpers.train(model, optimizer, 6)
        with torch.no_grad():
            model[0].weight.add_(1)  # a change between the last step and remove()
        pruner.remove()
        return model, optimizer, pruner

    def test_hooks_are_off_and_weights_zero(self, removed):
        model, optimizer, pruner = removed
        helpers.assert_exactly_zero(pruner, optimizer)
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        for p, mask in zip(helpers.prunable(model), pruner.masks.values(), strict=True):
            assert torch.equal(p != 0, mask)

    def test_later_steps_are_free_and_masks_stay_readable(self, removed):
        model, optimizer, pruner = removed
        masks = {name: m.clone() for name, m in pruner.masks.items()}
        helpers.train(model, optimizer, 3)
        assert helpers.identical(dict(pruner.masks), masks)
        assert pruner.step == 6
        assert all(p[~m].any() for p, m in zip(helpers.prunable(model), masks.values(), strict=True))

    def test_twice_is_harmless_and_another_pruner_may_follow(self, removed):
        model, optimizer, pruner = removed
        pruner.remove()
        again = helpers.make_pruner(model, optimizer, 0.9, init="keep")
        helpers.train(model, optimizer, 6)
        assert again.sparsity == 1 - round(0.1 * 436) / 436


def test_a_second_pruner_on_one_optimizer_warns():
    model = helpers.mlp()
    optimizer = helpers.sgd(model)
    first = helpers.make_pruner(model, optimizer)
    with pytest.warns(UserWarning, match="has a Pruner for these weights already"):
        second = helpers.make_pruner(model, optimizer)
    for pruner in (second, first):
        with pytest.warns(UserWarning, match="never made a step"):
            pruner.remove()
    parts = [helpers.make_pruner(model, optimizer, include=name) for name in ("0.weight", "2.weight")]
    for pruner in parts:
        with pytest.warns(UserWarning, match="never made a step"):
            pruner.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        helpers.make_pruner(model, optimizer)


def test_repr_is_a_table_layer_by_layer():
    model = helpers.convnet()
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, 0.75, scope="layer")
    helpers.train(model, optimizer, 6)
    lines = repr(pruner).splitlines()
    assert "FGGP(rate=0.5)" in lines[0]
    assert "75.00% at step 6" in lines[0]
    assert lines[2].split() == ["0.weight", "6×2×3×3", "108", "27", "75.00%"]
    assert lines[5].split() == ["total", "436", "109", "75.00%"]
    assert len({len(line) for line in lines[1:6]}) == 1
    assert lines[6].split()[:6] == ["94.6%", "of", "the", "model's", "461", "parameters"]


@pytest.mark.parametrize("name", [*helpers.GRADUAL, "rigl", "set"])
def test_every_method_by_name_reaches_the_target(name):
    model = helpers.convnet()
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, 0.85, method=name)
    helpers.train(model, optimizer, 7)
    assert pruner.sparsity == 1 - round(0.15 * 436) / 436
    assert isinstance(pruner.method, REGISTRY[name])


def test_a_schedule_of_ones_own():
    model = helpers.convnet()
    optimizer = helpers.sgd(model)
    pruner = fggp.Pruner(model, optimizer, 0.8, begin=0, end=4, every=1, schedule=lambda p: 1 - p**2)
    counts = []
    for t in range(1, 5):
        helpers.train(model, optimizer, range(t, t + 1))
        counts.append(round(436 * (1 - pruner.sparsity)))
    assert counts == [round((1 - 0.8 * (t / 4) ** 2) * 436) for t in range(1, 5)]
