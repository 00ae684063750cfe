"""Training that ends early, weights that are loaded back, copies of the model, layers that are thawed."""

import copy
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fggp
import helpers
from recipes import kinds, zeros

PROGRAMS = """
import os, sys
import torch, fggp
fggp.Pruner
for number, program in enumerate(sys.argv[1:]):
    if os.fork() == 0:
        os.dup2(os.open(f"{number}.txt", os.O_WRONLY | os.O_CREAT), 2)
        exec(program)
        break
    _, status = os.wait()
    assert status == 0, number
"""


def said_in_the_end(folder, *programs):
    """What programs write to standard error, up to their end. All are forked from one: importing takes the time."""
    command = [sys.executable, "-W", "error", "-c", PROGRAMS, *map(textwrap.dedent, programs)]
    subprocess.run(command, cwd=folder, check=True)
    return [(folder / f"{number}.txt").read_text() for number in range(len(programs))]


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

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
    def test_the_end_of_the_program_says_so(self, tmp_path):
        trains = """
            model = torch.nn.Linear(20, 20)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            pruner = fggp.Pruner(model, optimizer, 0.9, begin=0, end=8, every=2)
            for _ in range({steps}):
                model(torch.randn(4, 20)).sum().backward()
                optimizer.step()
        """
        tries = """
            def fits(sparsity):
                model = torch.nn.Linear(20, 20)
                fggp.Pruner(model, torch.optim.SGD(model.parameters()), sparsity, begin=0, end=8, every=2)
            fits(0.9)
        """
        none, some, all_, tried = said_in_the_end(tmp_path, *(trains.format(steps=n) for n in (0, 3, 8)), tries)
        assert "never made a step" in none
        assert "got to step 3 of 8" in some
        assert all_ == ""
        assert tried == ""  # the pruner did not live until the end

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

    def test_they_are_noticed_after_a_step_that_does_not_count(self):
        model, optimizer, pruner, _ = self.run()
        pruner.zero()
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = 0.0  # as torch.distributed.checkpoint steps, to have state
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.05
        assert pruner.step == 6
        model.load_state_dict(helpers.convnet(seed=5).state_dict())
        with pytest.raises(RuntimeError, match="not zero any more"):
            helpers.train(model, optimizer, [7])

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
