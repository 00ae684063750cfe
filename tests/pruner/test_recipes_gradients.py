"""A part of the network that a batch leaves out has no gradient then. That says nothing about its weights."""

import copy

import pytest
import torch
from torch import nn

import fggp
import helpers
from recipes import batch, kinds, train


class Experts(nn.Module):
    """Four matrices in one parameter."""

    def __init__(self, rows, columns):
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Parameter(torch.randn(4, rows, columns) / 4)


class TestLeftOutOfTheDecidingBatch:
    """A part of the network that a batch does not use has no gradient then. That says nothing about its weights."""

    def test_two_heads_in_turns(self):
        torch.manual_seed(0)
        model = nn.ModuleDict({"trunk": nn.Linear(16, 64), "a": nn.Linear(64, 256), "b": nn.Linear(64, 256)})
        optimizer = helpers.sgd(model, lr=0.05)
        pruner = fggp.Pruner(model, optimizer, 0.95, begin=0, end=300, every=10)

        def loss(model, t):
            target = batch(1000 + t, 256)
            return (model["b" if t % 2 == 0 else "a"](model["trunk"](batch(t)).relu()) - target).square().mean()

        train(model, optimizer, range(1, 301), loss)  # every update is at a step of head b
        kept = pruner.densities()
        assert 0.8 < kept["a.weight"] / kept["b.weight"] < 1.25

    @pytest.mark.parametrize("set_to_none", [True, False])
    def test_skipped_blocks(self, set_to_none):
        torch.manual_seed(0)
        model = nn.ModuleList(nn.Linear(24, 24) for _ in range(8))
        optimizer = helpers.sgd(model, lr=0.02)
        pruner = fggp.Pruner(model, optimizer, 0.9, begin=0, end=300, every=10)
        generator = torch.Generator().manual_seed(0)
        for t in range(1, 301):
            optimizer.zero_grad(set_to_none=set_to_none)
            x = batch(t, 24)
            for block, skipped in zip(model, torch.rand(8, generator=generator) < 0.5, strict=True):
                x = x if skipped else x + block(x).tanh() / 4
            (x - batch(1000 + t, 24)).square().mean().backward()
            optimizer.step()
        kept = list(pruner.densities().values())
        assert max(kept) < 1.6 * min(kept)  # 3 % to 25 % if a skipped block counts as converged

    def test_routed_experts(self):
        torch.manual_seed(0)
        model = nn.ModuleList(nn.Linear(32, 128) for _ in range(4))
        optimizer = helpers.sgd(model, lr=0.05)
        pruner = fggp.Pruner(model, optimizer, 0.9, begin=0, end=200, every=10)

        def loss(model, t):  # two of four in turns; those of the updates are always 0 and 2
            x = batch(t, 32)
            return sum((model[i](x) - batch(1000 + t, 128)).square().mean() for i in (t % 2, 2 + t % 2))

        train(model, optimizer, range(1, 201), loss)
        kept = list(pruner.densities().values())
        assert max(kept) < 1.25 * min(kept)

    def test_one_expert_of_a_batch_of_matrices(self):
        model = Experts(32, 128)
        optimizer = helpers.sgd(model, lr=0.05)
        pruner = fggp.Pruner(model, optimizer, 0.9, begin=0, end=200, every=10)

        def loss(model, t):  # the gradient of the others is zero, not missing
            x = batch(t, 32)
            return sum((x @ model.up[i] - batch(1000 + t, 128)).square().mean() for i in (t % 2, 2 + t % 2))

        train(model, optimizer, range(1, 201), loss)
        kept = pruner.masks["up"].flatten(1).float().mean(1)
        assert kept.max() < 1.25 * kept.min()

    def test_experts_that_are_left_out_of_the_only_update(self):
        model = Experts(16, 32)
        optimizer = helpers.sgd(model, lr=0.01)
        pruner = fggp.Pruner(model, optimizer, 0.5, begin=0, end=10, every=10)
        train(model, optimizer, range(1, 11), lambda m, t: sum((batch(t) @ m.up[i]).square().mean() for i in (0, 2)))
        kept = pruner.masks["up"].flatten(1).float().mean(1)
        assert kept.min() > 0.4

    def test_magnitude_pruning_keeps_no_gradients(self):
        model = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        optimizer = helpers.sgd(model, lr=0.05)
        pruner = fggp.Pruner(model, optimizer, 0.9, begin=0, end=60, every=10, method="gmp")
        train(model, optimizer, range(1, 21), lambda m, t: m[t % 2](batch(t)).square().mean())
        assert pruner.state_dict()["gradients"] == {}

    def test_a_weight_without_any_gradient_is_named(self):
        model = nn.ModuleDict({"used": nn.Linear(16, 16), "unused": nn.Linear(16, 16)})
        optimizer = helpers.sgd(model)
        pruner = fggp.Pruner(model, optimizer, 0.5, begin=0, end=40, every=10)
        with pytest.warns(RuntimeWarning, match=r"'unused\.weight' had no gradient in 3 updates in a row"):
            train(model, optimizer, range(1, 41), lambda m, t: m["used"](batch(t)).square().mean())
        assert kinds(pruner) == ["no-gradient"]

    def test_a_resumed_run_has_the_last_gradients(self):
        def make():
            model = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
            optimizer = helpers.sgd(model, lr=0.05)
            return model, optimizer, fggp.Pruner(model, optimizer, 0.9, begin=0, end=60, every=10)

        def loss(model, t):
            return (model[t % 2](batch(t)) - batch(1000 + t)).square().mean()

        torch.manual_seed(0)
        model, optimizer, pruner = make()
        twin, twin_optimizer, twin_pruner = make()
        twin.load_state_dict(model.state_dict())
        train(model, optimizer, range(1, 36), loss)
        twin.load_state_dict(model.state_dict())
        twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert pruner.state_dict()["gradients"]
        twin_pruner.load_state_dict(pruner.state_dict())
        train(model, optimizer, range(36, 61), loss)
        train(twin, twin_optimizer, range(36, 61), loss)
        assert helpers.identical(dict(model.state_dict()), dict(twin.state_dict()))
        assert helpers.identical(pruner.state_dict(), twin_pruner.state_dict())
        assert pruner.state_dict()["gradients"] == {}  # no update is to come
