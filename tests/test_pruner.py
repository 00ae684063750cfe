"""The Pruner inside a training loop: the same bits as pruning written by hand into it."""

import math
import warnings

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fggp
import helpers
import reference
from fggp.methods import REGISTRY

naives = st.one_of(
    st.tuples(st.sampled_from(["fggp", "magnitude-first"]), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])),
    st.sampled_from([(n,) for n in helpers.GRADUAL if n not in ("fggp", "magnitude-first", "random")]),
)


@settings(max_examples=25)
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
    """Their memory order is the logical one but for dimensions of size 1, which used to upset the tie-break."""
    model = torch.nn.Conv2d(6, 8, 1).to(memory_format=torch.channels_last)
    torch.nn.init.constant_(model.weight, 0.5)
    pruner = helpers.make_pruner(model, helpers.sgd(model), 0.5, end=1, method="gmp")
    optimizer = pruner._optimizer
    model(torch.randn(2, 6, 3, 3)).sum().backward()
    optimizer.step()
    assert pruner.masks["weight"].flatten().tolist() == [False] * 24 + [True] * 24


def test_dead_units_whose_gradient_is_exactly_zero():
    """Half of the gradients tie at zero: the magnitudes decide, then the position."""

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


# What a closure is


def closure_for(model, optimizer, t):
    def closure():
        """As Lightning does it: everything inside."""
        optimizer.zero_grad()
        loss = helpers.loss_of(model, t)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("how", ["positional", "keyword", "with a scheduler"])
@pytest.mark.parametrize(
    "kind", [helpers.sgd, lambda m: torch.optim.AdamW(m.parameters(), lr=0.01)], ids=["SGD", "AdamW"]
)
def test_closures_are_ranked_by_the_gradient_that_they_compute(how, kind):
    (model, optimizer), (other, other_optimizer) = helpers.twin(helpers.convnet, kind)
    pruner = helpers.make_pruner(model, optimizer)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0) if how == "with a scheduler" else None
    plain = helpers.make_pruner(other, other_optimizer)
    for t in range(1, 9):
        closure = closure_for(model, optimizer, t)
        loss = optimizer.step(closure) if how == "positional" else optimizer.step(closure=closure)
        if scheduler:
            scheduler.step()
        expected = helpers.backward(other, other_optimizer, t)
        other_optimizer.step()
        assert helpers.identical(loss, expected)
        assert helpers.identical(dict(pruner.masks), dict(plain.masks))
        assert helpers.identical(model.state_dict(), other.state_dict())
        assert (pruner.step, pruner.last_update) == (plain.step, plain.last_update)
        helpers.assert_exactly_zero(pruner, optimizer)


def test_a_closure_given_as_none_is_none():
    model = helpers.mlp()
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, every=1)
    for step in (lambda: optimizer.step(None), lambda: optimizer.step(closure=None)):
        helpers.backward(model, optimizer, 1)
        step()
    assert (pruner.step, pruner.last_update) == (2, 2)


class Twice(torch.optim.SGD):
    def step(self, closure=None):
        with torch.enable_grad():
            closure()
            return closure()


class Never(torch.optim.SGD):
    evaluates = False

    def step(self, closure=None):
        if self.evaluates:
            with torch.enable_grad():
                return closure()
        return None


class Nested(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


def test_an_optimizer_that_evaluates_its_closure_twice_gets_a_clear_error():
    model = helpers.mlp()
    optimizer = Twice(model.parameters(), lr=0.1)
    helpers.make_pruner(model, optimizer)
    with pytest.raises(RuntimeError, match="evaluates its closure several times a step"):
        optimizer.step(closure_for(model, optimizer, 1))


def test_lbfgs_is_refused():
    model = helpers.mlp()
    optimizer = torch.optim.LBFGS(model.parameters())
    with (
        helpers.untouched(model, optimizer),
        pytest.raises(ValueError, match="optimizer=LBFGS evaluates the loss several"),
    ):
        helpers.make_pruner(model, optimizer)


def test_an_update_whose_closure_was_never_evaluated_is_made_later():
    model = helpers.mlp()
    optimizer = Never(model.parameters(), lr=0.1)
    pruner = helpers.make_pruner(model, optimizer, end=2, every=2)
    for t in (1, 2, 3):
        optimizer.step(closure_for(model, optimizer, t))
    assert (pruner.step, pruner.last_update, pruner.sparsity) == (3, 0, 0)
    optimizer.evaluates = True
    optimizer.step(closure_for(model, optimizer, 4))
    assert (pruner.last_update, pruner.sparsity) == (4, 0.8)


def test_an_optimizer_whose_step_calls_its_base_class_counts_once():
    torch.optim.SGD(helpers.mlp().parameters())  # the base class has hooks of its own once it has been made
    (model, optimizer), (other, _) = helpers.twin(helpers.mlp, lambda m: Nested(m.parameters(), lr=0.1, momentum=0.9))
    plain = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    pruner, expected = helpers.make_pruner(model, optimizer), helpers.make_pruner(other, plain)
    for t in range(1, 8):
        if t % 2:
            helpers.train(model, optimizer, range(t, t + 1))
        else:
            optimizer.step(closure_for(model, optimizer, t))
        helpers.train(other, plain, range(t, t + 1))
        assert (pruner.step, pruner.last_update) == (expected.step, expected.last_update)
        assert helpers.identical(model.state_dict(), other.state_dict())


def test_a_step_that_fails_is_no_step():
    """The update that was due then, postponed or not, is made by the next call that works."""
    model = helpers.mlp()
    optimizer = helpers.sgd(model, momentum=0)
    pruner = helpers.make_pruner(model, optimizer, end=5, every=3)

    def step_with_a_nan():
        helpers.poison(model, optimizer, 4)
        with helpers.not_learning(optimizer):
            optimizer.step()

    helpers.train(model, optimizer, 2)
    with pytest.warns(RuntimeWarning, match="due at step 3 is postponed"):
        step_with_a_nan()

    def fails():
        helpers.backward(model, optimizer, 4)
        raise KeyError("data")

    with pytest.raises(KeyError):
        optimizer.step(fails)
    helpers.backward(model, optimizer, 4)
    lr, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], None
    with pytest.raises(TypeError):
        optimizer.step()  # fails once the choice has been made
    optimizer.param_groups[0]["lr"] = lr
    assert (pruner.step, pruner.last_update) == (3, 0)
    step_with_a_nan()  # what had been chosen for the failed call is not put in force by another
    assert (pruner.step, pruner.last_update, pruner.sparsity) == (4, 0, 0)
    helpers.train(model, optimizer, range(5, 6))
    assert (pruner.step, pruner.last_update, pruner.sparsity) == (5, 5, 0.8)


# Non-finite and missing gradients


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["fggp", "gmp"])
def test_an_update_with_a_non_finite_gradient_is_postponed_and_warns_once(value, method):
    model = helpers.convnet()
    optimizer = helpers.sgd(model, momentum=0)
    pruner = helpers.make_pruner(model, optimizer, 0.9, end=6, every=2, method=method)
    counts = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for t in range(1, 10):
            if t in (2, 3, 6, 7):
                helpers.poison(model, optimizer, t, value)
                with helpers.not_learning(optimizer):
                    optimizer.step()
            else:
                helpers.train(model, optimizer, range(t, t + 1))
            counts.append(sum(int(m.sum()) for m in pruner.masks.values()))
    assert [w.category for w in warned] == [RuntimeWarning]
    assert "due at step 2 is postponed: a gradient is not finite" in str(warned[0].message)

    def n(t):
        return round((1 - reference.sparsity(t, 0.9, 0, 6)) * 436)

    # Due at 2: made at 4 with s_4. Due at 6, the end: made at 8 with the final sparsity.
    assert counts == [436, 436, 436, n(4), n(4), n(4), n(4), n(6), n(6)]
    assert pruner.last_update == 8


def test_a_postponed_update_is_made_at_the_next_finite_step_between_two_updates():
    model = helpers.convnet()
    optimizer = helpers.sgd(model, momentum=0)
    pruner = helpers.make_pruner(model, optimizer, 0.9, end=30, every=10)
    helpers.train(model, optimizer, 9)
    helpers.poison(model, optimizer, 10)
    with pytest.warns(RuntimeWarning, match="due at step 10"), helpers.not_learning(optimizer):
        optimizer.step()
    helpers.train(model, optimizer, range(11, 12))
    assert pruner.last_update == 11
    active = round((1 - reference.sparsity(11, 0.9, 0, 30)) * 436)
    assert pruner.sparsity == 1 - active / 436
    helpers.train(model, optimizer, range(12, 20))
    assert pruner.last_update == 11
    helpers.train(model, optimizer, range(20, 21))
    assert pruner.last_update == 20


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_large_finite_gradients_do_not_postpone(dtype):
    """Their norm overflows; they are finite all the same."""
    model = helpers.mlp(dtype=dtype)
    optimizer = helpers.sgd(model, lr=0)
    pruner = helpers.make_pruner(model, optimizer, end=1)
    helpers.backward(model, optimizer, 1)
    model[0].weight.grad.fill_(torch.finfo(dtype).max)
    optimizer.step()
    assert pruner.last_update == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "kind",
    [helpers.sgd, lambda m: torch.optim.Adam(m.parameters()), lambda m: torch.optim.Adam(m.parameters(), fused=True)],
)
def test_a_pruned_weight_with_a_non_finite_gradient_ends_exactly_zero(value, kind):
    model = helpers.mlp()
    optimizer = kind(model)
    pruner = helpers.make_pruner(model, optimizer, end=1)
    helpers.train(model, optimizer, 2)
    gone = (~pruner.masks["0.weight"]).flatten().nonzero()[0].item()
    helpers.poison(model, optimizer, 3, value, where=gone)
    optimizer.step()
    helpers.assert_exactly_zero(pruner, optimizer)
    assert model[0].weight.isfinite().all()


def test_a_non_finite_gradient_between_updates_postpones_nothing():
    model = helpers.mlp()
    optimizer = helpers.sgd(model, lr=0, momentum=0)
    pruner = helpers.make_pruner(model, optimizer, every=3)
    helpers.poison(model, optimizer, 1, math.inf)
    with helpers.not_learning(optimizer):
        optimizer.step()
    helpers.train(model, optimizer, range(2, 4))
    assert pruner.last_update == 3


@pytest.mark.parametrize("naive", [("fggp", 0.5), ("taylor",), ("gradient-only",)], ids=lambda n: n[0])
def test_a_weight_that_the_loss_does_not_reach_counts_as_having_a_zero_gradient(naive):
    class Part(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.used, self.unused = torch.nn.Linear(6, 8), torch.nn.Linear(6, 8)

        def forward(self, x):
            return self.used(x)

    pruner = helpers.run_beside_the_reference(Part, helpers.sgd, 7, naive, sparsity=0.4)
    # Forty percent go, all of them from the half whose gradients are zero, where gradients decide alone.
    if naive[0] != "fggp":
        assert pruner.masks["used.weight"].all()


class TestNoGradientAtAll:
    def step(self, method, sparsity=0.8):
        model = helpers.mlp()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, sparsity, end=1, method=method)
        optimizer.step()
        return model, optimizer, pruner

    @pytest.mark.parametrize("method", ["fggp", "magnitude-first", "taylor", "gradient-only"])
    def test_a_method_that_needs_it_waits(self, method):
        with pytest.warns(RuntimeWarning, match=f"no weight has a gradient, and '{method}' ranks by it"):
            model, optimizer, pruner = self.step(method)
        assert (pruner.step, pruner.last_update, pruner.sparsity) == (1, 0, 0)
        helpers.train(model, optimizer, range(2, 3))
        assert (pruner.last_update, pruner.sparsity) == (2, 0.8)

    @pytest.mark.parametrize("method", ["gmp", "random"])
    def test_a_method_that_does_not_goes_on(self, method):
        *_, pruner = self.step(method)
        assert (pruner.last_update, pruner.sparsity) == (1, 0.8)

    def test_nothing_to_prune_needs_no_gradient(self):
        *_, pruner = self.step("fggp", sparsity=0.0)
        assert pruner.last_update == 1


# Randomness


@pytest.mark.parametrize("method", [*helpers.GRADUAL, "rigl", "set"])
def test_the_global_generator_is_never_used(method):
    torch.manual_seed(3)
    model = helpers.convnet()
    optimizer = helpers.sgd(model)
    before = torch.get_rng_state()
    pruner = helpers.make_pruner(model, optimizer, method=method, init_sparsity=0.3)
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


# Life and looks


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
            model[0].weight.add_(1)  # what someone did between the last step and remove()
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
    with pytest.warns(UserWarning, match="has a Pruner already"):
        second = helpers.make_pruner(model, optimizer)
    second.remove()
    first.remove()
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
    assert lines[-1].split() == ["total", "436", "109", "75.00%"]
    assert len({len(line) for line in lines[1:]}) == 1


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
