"""Optimizers that wrap others, that come later, or that share one budget."""

import warnings

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import fggp
import helpers
from recipes import SAM, batch, kinds, train, zeros


class TestOptimizersThatWrapOthers:
    def test_a_closure_with_the_base_given_is_no_stranger(self):
        model = helpers.convnet()
        optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.05)
        pruner = helpers.make_pruner(model, optimizer.base_optimizer, 0.8)
        for t in range(1, 8):

            def closure(t=t):
                optimizer.zero_grad()
                loss = helpers.loss_of(model, t)
                loss.backward()
                return loss

            optimizer.step(closure)
        assert pruner.finished
        assert pruner.check() == []

    def test_an_optimizer_that_is_kept_beside_is_not_waited_for(self):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        optimizer.warmup = torch.optim.Adam(model.parameters())
        pruner = helpers.make_pruner(model, optimizer, 0.8)
        helpers.train(model, optimizer, 6)
        assert pruner.finished

    def test_an_optimizer_without_a_learning_rate(self):
        adafactor = pytest.importorskip("transformers.optimization").Adafactor
        model = helpers.convnet()
        optimizer = adafactor(model.parameters())
        assert optimizer.param_groups[0]["lr"] is None
        pruner = helpers.make_pruner(model, optimizer, 0.8)
        train(model, optimizer, range(1, 7))
        assert pruner.finished

    @pytest.mark.parametrize("way", ["two steps", "closure"])
    def test_sam(self, way):
        model = helpers.convnet()
        optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9)
        pruner = helpers.make_pruner(model, optimizer, 0.8)
        for t in range(1, 8):

            def closure(t=t):
                optimizer.zero_grad()
                loss = helpers.loss_of(model, t)
                loss.backward()
                return loss

            if way == "closure":
                optimizer.step(closure)
            else:
                closure()
                optimizer.first_step()
                closure()
                optimizer.second_step()
            helpers.assert_exactly_zero(pruner, optimizer.base_optimizer)
        assert (pruner.step, pruner.finished) == (7, True)
        assert zeros(model, pruner) == pruner.sparsity == 1 - round(0.2 * 436) / 436

    def test_sam_whose_base_is_given_is_the_same(self):
        model = helpers.convnet()
        optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.05)
        pruner = helpers.make_pruner(model, optimizer.base_optimizer, 0.8)
        for t in range(1, 8):
            for step in (optimizer.first_step, optimizer.second_step):
                optimizer.zero_grad()
                helpers.loss_of(model, t).backward()
                step()
        assert pruner.finished
        assert zeros(model, pruner) == pruner.sparsity

    def test_lookahead_whose_slow_weights_are_written_after_the_step(self):
        lookahead = pytest.importorskip("timm.optim").Lookahead
        model = helpers.convnet()
        optimizer = lookahead(helpers.sgd(model), k=2)
        pruner = helpers.make_pruner(model, optimizer, 0.8)
        for t in range(1, 10):
            train(model, optimizer, [t])
            assert zeros(model, pruner) >= pruner.sparsity
            assert not any(s["slow_buffer"][p == 0].any() for p, s in optimizer.state.items() if p.ndim > 1 and t > 7)
        assert pruner.finished
        assert pruner.check() == []


class TestAnotherOptimizer:
    def test_is_noticed(self):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, 0.8, end=10)
        helpers.train(model, optimizer, 4)
        other = torch.optim.Adam(model.parameters())
        with pytest.warns(RuntimeWarning, match=r"Adam changes the weights of a Pruner .* pruner\.attach\(optimizer\)"):
            train(model, other, [5])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(model, other, [6])  # said once
        assert "other-optimizer" in kinds(pruner)
        assert "revived" in kinds(pruner)

    def test_attached_goes_on(self):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, 0.8, end=10)
        helpers.train(model, optimizer, 4)
        other = torch.optim.Adam(model.parameters(), lr=1e-3)
        pruner.attach(other)
        assert not optimizer._optimizer_step_pre_hooks
        train(model, other, range(5, 11))
        assert (pruner.step, pruner.finished, kinds(pruner)) == (10, True, [])
        helpers.assert_exactly_zero(pruner, other)
        with pytest.warns(RuntimeWarning, match="SGD changes the weights of a Pruner"):
            train(model, optimizer, [11])  # the former one

    def test_what_replaced_weights_is_not_taken_over_by_a_refused_one(self):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, 0.8)
        helpers.train(model, optimizer, 2)
        before = helpers.pruned_parameters(pruner)
        model[0].weight = nn.Parameter(model[0].weight.detach().clone())
        other = torch.optim.SGD([model[0].weight], lr=0.1)
        with pytest.raises(ValueError, match="does not hold"):
            pruner.attach(other)
        assert all(p is before[name] for name, p in helpers.pruned_parameters(pruner).items())

    def test_that_lacks_weights_is_refused_and_changes_nothing(self):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, 0.8)
        with pytest.raises(ValueError, match=r"does not hold '3\.weight', '6\.weight'"):
            pruner.attach(torch.optim.SGD(model[0].parameters(), lr=0.1))
        helpers.train(model, optimizer, 6)
        assert pruner.finished


class TestSeveralOptimizers:
    def make(self):
        model = helpers.convnet()
        first = torch.optim.SGD(model[0].parameters(), lr=0.05, momentum=0.9)
        rest = [p for name, p in model.named_parameters() if not name.startswith("0.")]
        second = torch.optim.Adam(rest, lr=1e-3)
        return model, first, second, helpers.make_pruner(model, [first, second], 0.9)

    def test_one_budget_and_a_step_when_each_has_stepped(self):
        model, first, second, pruner = self.make()
        for t in range(1, 7):
            first.zero_grad()
            second.zero_grad()
            helpers.loss_of(model, t).backward()
            first.step()
            assert pruner.step == t - 1
            second.step()
            assert pruner.step == t
            assert zeros(model, pruner) == pruner.sparsity
        assert pruner.sparsity == 1 - round(0.1 * 436) / 436
        for parameter in (p for p in model.parameters() if p.ndim > 1):
            for state in (first.state.get(parameter, {}), second.state.get(parameter, {})):
                assert not any(v[parameter == 0].any() for v in state.values() if v.shape == parameter.shape)

    def test_each_clears_its_gradients_at_once(self):
        model, first, second, pruner = self.make()
        for t in range(1, 7):
            helpers.loss_of(model, t).backward()
            for optimizer in (first, second):
                optimizer.step()
                optimizer.zero_grad()
        assert pruner.finished
        assert 0 < pruner.densities()["0.weight"] < 1

    def test_a_step_of_one_that_a_scaler_skips(self):
        """Gradients that are still scaled are not ranked: the step is complete when both have stepped after it."""
        densities = []
        for skipped in (None, 2):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16))
            optimizers = [torch.optim.SGD(layer.parameters(), lr=0.01) for layer in model]
            pruner = fggp.Pruner(model, optimizers, 0.5, begin=0, end=4, every=1)
            for t in range(1, 7):
                model(batch(t)).square().mean().backward()
                for p in model.parameters():
                    p.grad.mul_(65536.0)
                for i, optimizer in enumerate(optimizers):
                    for p in model[i].parameters():
                        p.grad.div_(65536.0)  # as GradScaler does before the step
                    if (i, t) != (0, skipped):
                        optimizer.step()
                for optimizer in optimizers:
                    optimizer.zero_grad()
            densities.append(list(pruner.densities().values()))
            assert pruner.finished
        assert abs(densities[0][0] - densities[1][0]) < 0.1

    def test_one_that_never_steps_is_named(self):
        model, first, _, pruner = self.make()
        for t in range(1, 4):
            first.zero_grad()
            helpers.loss_of(model, t).backward()
            first.step()
        with pytest.warns(UserWarning, match="has several optimizers and Adam did not step"):
            pruner.remove()

    def test_muon_and_adamw(self):
        muon = getattr(torch.optim, "Muon", None)
        if muon is None:
            pytest.skip("PyTorch has no Muon")
        model = helpers.mlp()
        matrices = [p for p in model.parameters() if p.ndim == 2]
        rest = [p for p in model.parameters() if p.ndim != 2]
        optimizers = [muon(matrices, lr=0.01), torch.optim.AdamW(rest)]
        pruner = helpers.make_pruner(model, optimizers, 0.8)
        for t in range(1, 7):
            for optimizer in optimizers:
                optimizer.zero_grad()
            helpers.loss_of(model, t).backward()
            for optimizer in optimizers:
                optimizer.step()
        assert pruner.finished
        helpers.assert_exactly_zero(pruner, optimizers[0])

    def test_none_is_refused(self):
        with pytest.raises(ValueError, match=r"optimizer=\[\] must be an optimizer"):
            helpers.make_pruner(helpers.mlp(), [])


@pytest.mark.parametrize("every", [1, 2])
def test_a_step_that_only_makes_optimizer_state_is_none(every):
    model = helpers.mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    pruner = helpers.make_pruner(model, optimizer, every=every)
    get_optimizer_state_dict(model, optimizer)
    assert optimizer.state
    assert (pruner.step, pruner.sparsity) == (0, 0.0)
    train(model, optimizer, range(1, 7))
    assert (pruner.step, pruner.finished) == (6, True)
