"""How pruning failed in other people's training loops without a word, and what is right there: one test a recipe."""

import copy
import re
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fggp
import helpers


def zeros(model, pruner):
    """The share of zeros among the pruned weights of a model or a copy of it."""
    weights = [dict(model.named_parameters())[name] for name in pruner.masks]
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def kinds(pruner):
    return [finding.kind for finding in pruner.check()]


def train(model, optimizer, steps, loss=None):
    for t in steps:
        optimizer.zero_grad()
        (helpers.loss_of(model, t) if loss is None else loss(model, t)).backward()
        optimizer.step()


def batch(t, size=16):
    generator = torch.Generator().manual_seed(t)
    return torch.randn(32, size, generator=generator)


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
        class Experts(nn.Module):
            def __init__(self):
                super().__init__()
                self.up = nn.Parameter(torch.randn(4, 32, 128) / 4)

        torch.manual_seed(0)
        model = Experts()
        optimizer = helpers.sgd(model, lr=0.05)
        pruner = fggp.Pruner(model, optimizer, 0.9, begin=0, end=200, every=10)

        def loss(model, t):  # the gradient of the others is zero, not missing
            x = batch(t, 32)
            return sum((x @ model.up[i] - batch(1000 + t, 128)).square().mean() for i in (t % 2, 2 + t % 2))

        train(model, optimizer, range(1, 201), loss)
        kept = pruner.masks["up"].flatten(1).float().mean(1)
        assert kept.max() < 1.25 * kept.min()

    def test_experts_that_are_left_out_of_the_only_update(self):
        class Experts(nn.Module):
            def __init__(self):
                super().__init__()
                self.up = nn.Parameter(torch.randn(4, 16, 32) / 4)

        torch.manual_seed(0)
        model = Experts()
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


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021) with two steps that the user calls."""

    def __init__(self, params, base, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        for p in parameters:
            self.state[p]["before"] = p.clone()
            p.add_(p.grad * (0.05 / (norm + 1e-12)))

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if "before" in self.state[p]:
                    p.copy_(self.state[p]["before"])
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            closure()
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


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


class TestTrainingThatEndsEarly:
    def run(self, steps=2):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, 0.9, end=8)
        helpers.train(model, optimizer, steps)
        return model, optimizer, pruner

    MESSAGE = r"pruning got to step 2 of 8: the sparsity is 52\.1% instead of 90\.0%.*finish"

    def test_remove_says_so(self):
        *_, pruner = self.run()
        with pytest.warns(UserWarning, match=self.MESSAGE):
            pruner.remove()

    def test_save_says_so_once_and_certifies_it(self, tmp_path):
        model, _, pruner = self.run()
        with pytest.warns(UserWarning, match=self.MESSAGE):
            fggp.save(model, tmp_path / "net.fggp")
        fggp.save(model, tmp_path / "again.fggp")
        with safe_open(tmp_path / "again.fggp", "pt") as file:
            told = file.metadata()
        assert told["pruning-method"] == "fggp"
        assert (told["pruning-target"], told["pruning-step"]) == ("0.9", "2 of 8")
        assert float(told["pruning-reached"]) == pytest.approx(pruner.sparsity, rel=1e-5)
        assert float(told["pruning-coverage"]) == pytest.approx(436 / 461, rel=1e-5)

    def test_a_checkpoint_in_between_does_not_use_up_the_alarm(self, tmp_path):
        model, optimizer, pruner = self.run()
        with pytest.warns(UserWarning, match="got to step 2 of 8"):
            fggp.save(model, tmp_path / "early.fggp")
        helpers.train(model, optimizer, [3])
        with pytest.warns(UserWarning, match="got to step 3 of 8"):
            fggp.save(model, tmp_path / "later.fggp")
        helpers.train(model, optimizer, [4])
        with pytest.warns(UserWarning, match="got to step 4 of 8"):
            pruner.remove()

    def test_a_later_target_that_is_not_reached_is_said_too(self):
        model, optimizer, pruner = self.run(8)
        pruner.reschedule(sparsity=0.95, end=20)
        helpers.train(model, optimizer, range(9, 11))
        with pytest.warns(UserWarning, match=r"got to step 10 of 20: .* instead of 95\.0%"):
            pruner.remove()

    def test_the_certificate_is_that_of_the_weights_in_the_file(self, tmp_path):
        model, _, pruner = self.run(8)
        with torch.no_grad():
            model[0].weight.fill_(1.0)
        with pytest.warns(UserWarning, match="not zero any more"):
            fggp.save(model, tmp_path / "net.fggp")
        with safe_open(tmp_path / "net.fggp", "pt") as file:
            reached = float(file.metadata()["pruning-reached"])
        assert reached == pytest.approx(zeros(model, pruner), rel=1e-5)
        assert reached < 0.8

    def test_an_error_in_the_step_is_not_taken_for_weights_loaded_back(self):
        class Fails(torch.optim.SGD):
            fails = False

            def step(self, closure=None):
                super().step(closure)
                if self.fails:
                    raise ArithmeticError

        model = helpers.convnet()
        optimizer = Fails(model.parameters(), lr=0.05, momentum=0.9)
        pruner = helpers.make_pruner(model, optimizer, 0.9)
        helpers.train(model, optimizer, 4)
        optimizer.fails = True
        with pytest.raises(ArithmeticError):
            helpers.train(model, optimizer, [5])
        optimizer.fails = False
        helpers.train(model, optimizer, range(6, 9))
        assert pruner.finished

    def test_a_finish_that_fails_changes_nothing(self, monkeypatch):
        model, optimizer, pruner = self.run()

        def fail(*args):
            raise ArithmeticError

        with monkeypatch.context() as patch:
            patch.setattr("fggp.pruner.pruner.choose", fail)
            with pytest.raises(ArithmeticError):
                pruner.finish()
        helpers.train(model, optimizer, range(3, 9))
        assert (pruner.schedule.end, pruner.finished) == (8, True)

    def test_an_earlier_state_reopens_what_was_finished(self):
        model, optimizer, pruner = self.run()
        state = pruner.state_dict()
        helpers.train(model, optimizer, range(3, 9))
        assert pruner.finished
        pruner.load_state_dict(state)
        with pytest.warns(UserWarning, match="got to step 2 of 8"):
            pruner.remove()

    def test_finish_with_gradients_that_are_not_finite(self):
        model, optimizer, pruner = self.run()
        helpers.poison(model, optimizer, 3)
        pruner.finish()
        assert pruner.finished

    def test_compile_says_so(self):
        model, *_ = self.run()
        with pytest.warns(UserWarning, match=self.MESSAGE):
            fggp.compile(model.eval(), torch.randn(8, 2, 6, 6))

    @pytest.mark.parametrize(
        ("steps", "said"), [(0, "never made a step"), (3, "got to step 3 of 8"), (8, None)], ids=str
    )
    def test_the_end_of_the_program_says_so(self, steps, said):
        code = f"""
            import torch, fggp
            def train():
                model = torch.nn.Linear(20, 20)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                pruner = fggp.Pruner(model, optimizer, 0.9, begin=0, end=8, every=2)
                for _ in range({steps}):
                    model(torch.randn(4, 20)).sum().backward()
                    optimizer.step()
                return pruner
            pruner = train()
        """
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
        )
        assert done.stderr == "" if said is None else said in done.stderr

    def test_the_end_of_the_program_knows_what_was_only_tried_out(self):
        code = """
            import torch, fggp
            def fits(sparsity):
                model = torch.nn.Linear(20, 20)
                fggp.Pruner(model, torch.optim.SGD(model.parameters()), sparsity, begin=0, end=8, every=2)
            fits(0.9)
        """
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
        )
        assert done.stderr == ""

    def test_finish_prunes_the_rest_at_once(self):
        model, optimizer, pruner = self.run()
        pruner.finish()
        assert pruner.finished
        assert zeros(model, pruner) == pruner.sparsity == 1 - round(0.1 * 436) / 436
        helpers.assert_exactly_zero(pruner, optimizer)
        helpers.train(model, optimizer, range(3, 9))
        assert kinds(pruner) == []
        pruner.remove()

    @pytest.mark.parametrize("method", ["fggp", "gradient-only", "gmp", "granet"])
    def test_finish_without_gradients_or_steps(self, method):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        chosen = fggp.GraNet(total_steps=12) if method == "granet" else method
        pruner = helpers.make_pruner(model, optimizer, 0.6, end=8, method=chosen)
        before = torch.cat([w.detach().abs().flatten() for w in helpers.prunable(model)])
        pruner.finish()
        assert pruner.finished
        if method != "granet":  # without gradients it is magnitude that decides
            kept = torch.cat([m.flatten() for m in pruner.masks.values()])
            assert before[kept].min() >= before[~kept].max()


class TestWeightsLoadedBack:
    def run(self):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, 0.9)
        helpers.train(model, optimizer, 2)
        best = copy.deepcopy(model.state_dict())
        best_pruner = pruner.state_dict()
        helpers.train(model, optimizer, range(3, 7))
        model.load_state_dict(best)
        return model, optimizer, pruner, best_pruner

    def test_they_are_not_trained_on(self):
        model, optimizer, pruner, _ = self.run()
        before = copy.deepcopy(list(model.parameters()))
        with pytest.raises(RuntimeError, match=r"pruned weights are not zero any more, in '0\.weight'"):
            helpers.train(model, optimizer, [7])
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
        assert kinds(pruner) == ["revived"]

    def test_save_says_so(self, tmp_path):
        model, *_ = self.run()
        with pytest.warns(UserWarning, match="pruned weights are not zero any more"):
            fggp.save(model, tmp_path / "net.fggp")

    def test_attach_says_that_it_zeroes_them(self):
        _, optimizer, pruner, _ = self.run()
        with pytest.warns(RuntimeWarning, match="attach zeroes them again: .* not zero any more"):
            pruner.attach(optimizer)
        assert pruner.check() == []

    def test_weights_that_are_assigned_are_found(self):
        model, _, pruner, _ = self.run()
        model.load_state_dict(copy.deepcopy(helpers.convnet().state_dict()), assign=True)
        assert "detached" in kinds(pruner)

    def test_a_resumed_run_that_forgets_the_pruners_state(self):
        model, _, _, _ = self.run()
        pruned = copy.deepcopy(model)
        optimizer = helpers.sgd(pruned)
        pruner = helpers.make_pruner(pruned, optimizer, 0.9)
        with pytest.warns(RuntimeWarning, match=r"are zero already.*load_state_dict.*init='keep'"):
            helpers.train(pruned, optimizer, 1)
        kept = copy.deepcopy(model)
        optimizer = helpers.sgd(kept)
        pruner = helpers.make_pruner(kept, optimizer, 0.9, init="keep")
        helpers.train(kept, optimizer, 6)
        assert pruner.finished

    def test_with_the_pruners_state_training_goes_on(self):
        model, optimizer, pruner, state = self.run()
        pruner.load_state_dict(state)
        assert pruner.step == 2
        helpers.train(model, optimizer, range(3, 7))
        assert pruner.finished
        assert pruner.check() == []


class TestCopies:
    @pytest.mark.parametrize("kind", ["ema", "swa", "timm", "deepcopy"])
    def test_a_copy_that_follows_has_the_same_zeros(self, kind, tmp_path):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, 0.9)
        if kind == "ema":
            averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
            update, inner = averaged.update_parameters, averaged.module
        elif kind == "swa":
            averaged = AveragedModel(model)
            update, inner = averaged.update_parameters, averaged.module
        elif kind == "timm":
            averaged = pytest.importorskip("timm.utils").ModelEmaV3(model, decay=0.9)
            update, inner = averaged.update, averaged.module
        else:
            averaged = inner = copy.deepcopy(model)
            update = lambda model: None  # noqa: E731
        pruner.follow(averaged)
        for t in range(1, 9):
            helpers.train(model, optimizer, [t])
            update(model)
        assert zeros(inner, pruner) == pruner.sparsity == 1 - round(0.1 * 436) / 436
        assert pruner.check() == []
        fggp.save(inner, tmp_path / "average.fggp")

    def test_a_copy_that_is_filled_again_is_said(self, tmp_path):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, 0.9)
        averaged = copy.deepcopy(model)
        dense = copy.deepcopy(model.state_dict())
        pruner.follow(averaged)
        helpers.train(model, optimizer, 6)
        averaged.load_state_dict(dense)
        assert kinds(pruner) == ["copy"]
        with pytest.warns(UserWarning, match="not zero any more"):
            fggp.save(averaged, tmp_path / "average.fggp")
        pruner.follow(averaged)
        assert kinds(pruner) == []

    def test_what_is_no_copy_is_refused(self):
        model = helpers.convnet()
        pruner = helpers.make_pruner(model, helpers.sgd(model))
        with pytest.raises(ValueError, match=r"copy=Linear has no weight '0\.weight', '3\.weight'"):
            pruner.follow(nn.Linear(2, 2))
        with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
            pruner.follow(model.state_dict())

    def test_a_copy_that_is_none_any_more_is_let_go(self):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, 0.9, floor=1)
        averaged = copy.deepcopy(model)
        pruner.follow(averaged)
        averaged[0] = nn.Identity()
        with pytest.warns(RuntimeWarning, match=r"has no weight '0\.weight'.*not followed any more"):
            helpers.train(model, optimizer, 2)
        helpers.train(model, optimizer, range(3, 7))
        assert pruner.check() == []

    def test_the_pruner_does_not_keep_a_copy_alive(self):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer)
        pruner.follow(copy.deepcopy(model))
        helpers.train(model, optimizer, 6)
        assert pruner._health.copies == []


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


class TestThawed:
    def run(self):
        model = helpers.convnet()
        model[0].weight.requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
        pruner = helpers.make_pruner(model, optimizer, 0.8, end=10)
        helpers.train(model, optimizer, 4)
        model[0].weight.requires_grad_(True)
        optimizer.add_param_group({"params": [model[0].weight]})
        return model, optimizer, pruner

    def test_is_said_at_the_next_update(self):
        model, optimizer, pruner = self.run()
        with pytest.warns(RuntimeWarning, match=r"'0\.weight' became trainable .* pruner\.attach\(optimizer\)"):
            helpers.train(model, optimizer, range(5, 11))
        assert kinds(pruner) == ["uncovered"]

    def test_after_the_end_is_said_too(self):
        model, optimizer, pruner = self.run()
        with pytest.warns(RuntimeWarning, match="became trainable"):
            helpers.train(model, optimizer, range(5, 11))
        with pytest.warns(RuntimeWarning, match=r"schedule ended at step 10 .* instead of 80\.0%.*reschedule"):
            pruner.attach(optimizer)
        pruner.reschedule(end=14)
        helpers.train(model, optimizer, range(11, 15))
        assert pruner.finished
        assert pruner.check() == []

    def test_of_a_pruner_that_had_ended_is_said_at_a_later_look(self):
        model = helpers.convnet()
        model[0].weight.requires_grad_(False)
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, 0.8, exclude="0.bias")
        helpers.train(model, optimizer, 6)
        model[0].weight.requires_grad_(True)
        with pytest.warns(RuntimeWarning, match=r"'0\.weight' became trainable"):
            helpers.train(model, optimizer, range(7, 101))
        with pytest.warns(RuntimeWarning, match="schedule ended"):
            pruner.attach(optimizer)
        pruner.finish()
        assert pruner.sparsity == 1 - round(0.2 * 436) / 436

    def test_is_taken_in(self):
        model, optimizer, pruner = self.run()
        before = {name: mask.clone() for name, mask in pruner.masks.items()}
        pruner.attach(optimizer)
        assert list(pruner.masks) == ["0.weight", "3.weight", "6.weight"]
        assert helpers.identical({name: pruner.masks[name] for name in before}, before)
        assert pruner.masks["0.weight"].all()
        helpers.train(model, optimizer, range(5, 11))
        assert pruner.sparsity == 1 - round(0.2 * 436) / 436
        helpers.assert_exactly_zero(pruner, optimizer)
        assert pruner.check() == []


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
        assert all(w.filename == __file__ for w in told)
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
