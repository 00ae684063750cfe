"""Updates that meet a gradient that is not finite, or no gradient: postponed, with one warning."""

import math
import warnings

import pytest
import torch

import helpers
import reference


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["fggp", "gmp"])
def test_an_update_with_a_non_finite_gradient_is_postponed_and_warns_once(value, method):
    model = helpers.convnet()
    optimizer = helpers.sgd(model, momentum=0)
    pruner = helpers.make_pruner(model, optimizer, 0.9, end=6, every=2, method=method, floor=1)
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
    """Their norm overflows, but they are finite."""
    model = helpers.mlp(dtype=dtype)
    optimizer = helpers.sgd(model, lr=0)
    pruner = helpers.make_pruner(model, optimizer, end=1, floor=1)
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
def test_a_weight_that_the_loss_never_reaches_loses_the_same_share(naive):
    class Part(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.used, self.unused = torch.nn.Linear(6, 8), torch.nn.Linear(6, 8)

        def forward(self, x):
            return self.used(x)

    with pytest.warns(RuntimeWarning, match=r"'unused\.weight' had no gradient in 3 updates in a row"):
        pruner = helpers.run_beside_the_reference(Part, helpers.sgd, 7, naive, sparsity=0.4)
    kept = [int(mask.sum()) for mask in pruner.masks.values()]
    assert abs(kept[0] - kept[1]) <= 1


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
