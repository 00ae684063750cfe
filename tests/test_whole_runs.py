"""Whole training runs with a Pruner: the same bits as pruning written by hand into the loop, and exact counts."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import helpers
import reference

# At these sparsities small layers lose all their weights, as they do in the reference.
pytestmark = pytest.mark.filterwarnings("ignore:no weight is left in")

naives = st.one_of(
    st.tuples(st.sampled_from(["fggp", "magnitude-first"]), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])),
    st.sampled_from([(n,) for n in helpers.GRADUAL if n not in ("fggp", "magnitude-first", "random")]),
)


@settings(max_examples=settings.default.max_examples // 2)
@given(
    naives,
    st.sampled_from(["global", "layer"]),
    st.tuples(st.integers(0, 4), st.integers(1, 7), st.integers(1, 5)),
    st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.98]),
    st.sampled_from([None, "erk", "uniform"]),
)
@example(("fggp", 0.5), "layer", (0, 6, 2), 0.9, "erk")
@example(("fggp", 0.5), "global", (2, 7, 3), 0.98, None)
def test_whole_runs_are_those_of_the_reference(naive, scope, phase, sparsity, init):
    begin, length, every = phase
    options = {} if init is None else {"init": init, "init_sparsity": sparsity / 2}
    helpers.run_beside_the_reference(
        helpers.convnet,
        helpers.sgd,
        begin + length + 2,
        naive,
        scope=scope,
        sparsity=sparsity,
        begin=begin,
        end=begin + length,
        every=every,
        **options,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("naive", [("fggp", 0.5), ("taylor",)], ids=lambda n: n[0])
def test_whole_runs_in_every_dtype(dtype, naive):
    helpers.run_beside_the_reference(lambda: helpers.convnet(dtype=dtype), helpers.sgd, 8, naive)


def test_weights_of_mixed_dtypes_are_ranked_as_the_numbers_they_are():
    class Mixed(torch.nn.Sequential):
        def forward(self, x):
            for module in self:
                x = module(x.to(module.weight.dtype)) if hasattr(module, "weight") else module(x)
            return x

    def make():
        model = Mixed(*helpers.mlp())
        model[0].bfloat16()
        model[2].double()
        return model

    pruner = helpers.run_beside_the_reference(make, helpers.sgd, 8)
    assert pruner.sparsity == 1 - round(0.2 * 90) / 90


def test_whole_runs_in_channels_last():
    def channels_last():
        return helpers.convnet().to(memory_format=torch.channels_last)

    pruner = helpers.run_beside_the_reference(channels_last, helpers.sgd, 8)
    assert pruner.masks["0.weight"].is_contiguous(memory_format=torch.channels_last)


def test_tied_scores_at_the_cut_in_channels_last_with_1x1_kernels():
    """Their memory order differs from the logical one only in dimensions of size 1, which once broke ties wrongly."""
    model = torch.nn.Conv2d(6, 8, 1).to(memory_format=torch.channels_last)
    torch.nn.init.constant_(model.weight, 0.5)
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, 0.5, end=1, method="gmp")
    model(torch.randn(2, 6, 3, 3)).sum().backward()
    optimizer.step()
    assert pruner.masks["weight"].flatten().tolist() == [False] * 24 + [True] * 24


def test_dead_units_whose_gradient_is_exactly_zero():
    """Half of the gradients are zero, so magnitudes decide between them, then positions."""

    def make():
        model = helpers.mlp()
        model[1] = torch.nn.ReLU()
        with torch.no_grad():
            model[0].bias[:6] = -100
            model[0].weight[3:5] = model[0].weight[3:4]
        return model

    helpers.run_beside_the_reference(make, helpers.sgd, 8, every=1)


# Counting


def test_sparsity_follows_the_schedule_to_the_weight_and_stays():
    model = helpers.convnet()
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, 0.93, begin=2, end=11, every=4)
    seen = []
    for t in range(1, 15):
        helpers.train(model, optimizer, range(t, t + 1))
        seen.append(sum(int(m.sum()) for m in pruner.masks.values()))
        assert pruner.sparsity == 1 - seen[-1] / 436
    n6, n10, n11 = (round((1 - reference.sparsity(t, 0.93, 2, 11)) * 436) for t in (6, 10, 11))
    assert seen == [436] * 5 + [n6] * 4 + [n10] + [n11] * 4
    assert n11 == round(0.07 * 436)


def test_gradients_may_be_accumulated():
    """Only optimizer steps count, and the ranking sees the accumulated gradient."""
    (model, optimizer), (other, other_optimizer) = helpers.twin(helpers.mlp, helpers.sgd)
    pruner = helpers.make_pruner(model, optimizer)
    by_hand = reference.PrunedTraining(helpers.prunable(other), other_optimizer, 0.8, 0, 6, 2)
    for t in range(1, 9):
        for m, o in ((model, optimizer), (other, other_optimizer)):
            o.zero_grad()
            for micro in range(3):
                (helpers.loss_of(m, 10 * t + micro) / 3).backward()
        optimizer.step()
        by_hand.before_step()
        other_optimizer.step()
        by_hand.after_step()
        assert pruner.step == t
        assert helpers.identical(list(pruner.masks.values()), by_hand.masks)


def test_a_sparsity_of_zero_prunes_nothing():
    model = helpers.convnet()
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, 0.0)
    helpers.train(model, optimizer, 8)
    assert pruner.sparsity == 0
    (plain, plain_optimizer), _ = helpers.twin(helpers.convnet, helpers.sgd)
    helpers.train(plain, plain_optimizer, 8)
    assert helpers.identical(model.state_dict(), plain.state_dict())


def test_scope_layer_prunes_every_layer_by_the_same_share():
    model = helpers.convnet()
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, 0.75, scope="layer")
    helpers.train(model, optimizer, 7)
    kept = [int(m.sum()) for m in pruner.masks.values()]
    assert kept == [27, 54, 28]
    assert pruner.densities() == {"0.weight": 0.25, "3.weight": 0.25, "6.weight": 0.25}
