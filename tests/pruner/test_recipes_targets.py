"""Layers that die, floors, targets by layer, and targets that change in mid-run."""

import re

import pytest
import torch
from torch import nn

import fggp
import helpers
import recipes
from recipes import batch, train


class TestDeadLayers:
    def make(self, **options):
        torch.manual_seed(0)
        layers = [layer for _ in range(20) for layer in (nn.Linear(24, 24, bias=False), nn.Tanh())]
        model = nn.Sequential(*layers)
        for i, scale in enumerate(torch.linspace(0.2, 1, 20)):
            nn.init.orthogonal_(model[2 * i].weight, float(scale))
        optimizer = helpers.sgd(model, lr=0.01)
        pruner = fggp.Pruner(model, optimizer, 0.995, begin=0, end=4, every=1, method="gmp", **options)
        return model, optimizer, pruner

    def loss(self, model, t):
        return (model(batch(t, 24)) - batch(1000 + t, 24)).square().mean()

    def test_are_named(self):
        model, optimizer, pruner = self.make()
        with pytest.warns(RuntimeWarning, match="no weight is left in") as told:
            train(model, optimizer, range(1, 5), self.loss)
        named = [name for w in told for name in re.findall(r"'(\d+\.weight)'", str(w.message))]
        assert len(named) == len(set(named))  # each once
        assert "'0.weight'" in str(told[0].message)
        assert "floor=1" in str(told[0].message)
        assert {w.filename for w in told} == {recipes.__file__}  # where the step was called
        [dead] = [f for f in pruner.check() if f.kind == "dead-layer"]
        assert dead.weights == tuple(name for name, share in pruner.densities().items() if not share)

    @pytest.mark.parametrize(("floor", "least"), [(1, 1), (2, 2), (0.003, 2)])
    @pytest.mark.parametrize("scope", ["global", "layer"])
    def test_a_floor_keeps_them_alive_and_the_total_exact(self, floor, least, scope):
        model, optimizer, pruner = self.make(floor=floor, scope=scope)
        train(model, optimizer, range(1, 5), self.loss)
        counts = [int(mask.sum()) for mask in pruner.masks.values()]
        assert min(counts) >= least
        assert sum(counts) == round(0.005 * 20 * 576)

    def test_a_floor_that_leaves_too_many_is_refused(self):
        with pytest.raises(ValueError, match=r"sparsity=0\.995 leaves 58 of 11,520 weights; floor=3 keeps 60"):
            self.make(floor=3)


class TestTargetsByLayer:
    def test_each_is_exact_at_every_update(self):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, {"0.*": 0.5, "*": 0.9})
        sizes = {"0.weight": 108, "rest": 436 - 108}
        for t in range(1, 7):
            helpers.train(model, optimizer, [t])
            schedules = [b.schedule for b in pruner._targets.budgets]
            kept = int(pruner.masks["0.weight"].sum())
            if t % 2 == 0:
                assert kept == round((1 - schedules[0].sparsity_at(t)) * sizes["0.weight"])
                others = sum(int(m.sum()) for m in pruner.masks.values()) - kept
                assert others == round((1 - schedules[1].sparsity_at(t)) * sizes["rest"])
        assert pruner.finished
        assert pruner.densities()["0.weight"] == 0.5
        assert pruner.schedule.sparsity == pytest.approx(pruner.sparsity)

    @pytest.mark.parametrize("method", ["rigl", "fggp"])
    @pytest.mark.filterwarnings("ignore:no weight is left")
    def test_a_resumed_run_has_them(self, method):
        def make(targets):
            model = helpers.convnet()
            optimizer = helpers.sgd(model)
            return model, optimizer, helpers.make_pruner(model, optimizer, targets, method=method)

        model, optimizer, pruner = make({"0.*": 0.5, "*": 0.9})
        helpers.train(model, optimizer, 3)
        *_, resumed = make({"0.*": 0.5, "*": 0.9})
        resumed.load_state_dict(pruner.state_dict())
        assert helpers.identical(resumed.state_dict(), pruner.state_dict())
        *_, other = make(0.7)
        with pytest.warns(UserWarning, match=r"was made with sparsity=0\.7"):
            other.load_state_dict(pruner.state_dict())
        assert helpers.identical(other.state_dict(), pruner.state_dict())

    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            ({"0.*": 0.5}, r"sparsity has no target for '3\.weight', '6\.weight'"),
            ({"*": 0.5, "0.*": 0.9}, r"sparsity has a target for '0\.\*', which matches no prunable weight"),
            ({"*": 1.5}, r"sparsity=1\.5 must lie in"),
            ({}, "must have a target for every weight"),
        ],
    )
    def test_wrong_ones_are_refused(self, targets, message):
        model = helpers.convnet()
        with pytest.raises(ValueError, match=message):
            helpers.make_pruner(model, helpers.sgd(model), targets)


class TestReschedule:
    def run(self, steps=4):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, 0.8, end=10)
        helpers.train(model, optimizer, steps)
        return model, optimizer, pruner

    def test_another_target_and_end(self):
        model, optimizer, pruner = self.run()
        pruner.reschedule(sparsity=0.9, end=8)
        helpers.train(model, optimizer, range(5, 9))
        assert pruner.sparsity == 1 - round(0.1 * 436) / 436
        assert pruner.finished

    def test_another_end_keeps_each_targets_start(self):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, {"0.*": 0.5, "*": 0.8}, end=10, init_sparsity=0.3)
        before = [b.schedule.init_sparsity for b in pruner._targets.budgets]
        pruner.reschedule(end=12)
        assert [b.schedule.init_sparsity for b in pruner._targets.budgets] == before
        helpers.train(model, optimizer, 12)
        assert pruner.finished

    def test_after_the_end(self):
        model, optimizer, pruner = self.run(10)
        with pytest.raises(ValueError, match="end=10 must be greater than 10, the present step"):
            pruner.reschedule(sparsity=0.9)
        pruner.reschedule(sparsity=0.9, end=14)
        helpers.train(model, optimizer, range(11, 15))
        assert pruner.sparsity == 1 - round(0.1 * 436) / 436

    def test_weights_do_not_come_back(self):
        model, optimizer, pruner = self.run(8)
        before = pruner.sparsity
        with pytest.raises(ValueError, match=r"sparsity=0\.5 must be at least 0\.79"):
            pruner.reschedule(sparsity=0.5)
        pruner.reschedule(end=100)
        helpers.train(model, optimizer, range(9, 13))
        assert pruner.sparsity == before
        assert not pruner.finished
