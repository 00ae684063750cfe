"""The callback in real Lightning, of both packages, on the CPU."""

import copy
import csv
import importlib
import importlib.util
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

pytest.importorskip("lightning")

import fggp
import page
from fggp.lightning import Pruning
from fggp.training_shares import steps_of_shares
from helpers import mlp
from lightning_runs import (
    BATCH,
    BATCHES,
    WEIGHTS,
    SaveAt,
    Stop,
    Stream,
    assert_done,
    assert_same,
    assert_settled,
    loader,
    make_adam,
    make_module,
    make_sgd,
    make_trainer,
    plain_loop,
    zeros,
)

INSTALLED = [p for p in ("lightning.fabric", "lightning_fabric") if importlib.util.find_spec(p)]
pytestmark = [
    # What Lightning says about small data and few workers. fggp's warnings stay errors.
    *(pytest.mark.filterwarnings(f"ignore::{p}.utilities.warnings.PossibleUserWarning") for p in INSTALLED),
    # Lightning uses what PyTorch has deprecated.
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
]


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def either(request):
    """Either package: they have the same names, and classes of their own."""
    return pytest.importorskip(request.param)


@pytest.fixture
def pl():
    return importlib.import_module("lightning.pytorch")


# The length of training


def test_the_callback_and_nothing_else(either):
    pruning, module = Pruning(sparsity=0.9), make_module(either)
    make_trainer(either, pruning).fit(module, loader())
    assert_done(pruning, module)
    expected, pruner = plain_loop(total=4 * BATCHES)
    assert_same(module.net, expected)
    assert pruning.pruner.schedule == pruner.schedule
    assert pruning.pruner.step == pruner.step == 32


def test_a_single_callback_need_not_be_in_a_list(either):
    pruning, module = Pruning(sparsity=0.9), make_module(either)
    make_trainer(either, callbacks=pruning).fit(module, loader())
    assert_done(pruning, module)


@pytest.mark.parametrize(
    ("settings", "total"),
    [
        ({}, 32),
        ({"accumulate_grad_batches": 3}, 12),  # 3 + 3 + 2 batches an epoch
        ({"accumulate_grad_batches": 8}, 4),
        ({"limit_train_batches": 5}, 20),
        ({"limit_train_batches": 0.5, "accumulate_grad_batches": 3}, 8),
        ({"max_steps": 11}, 11),
        ({"max_steps": 11, "max_epochs": -1}, 11),
        ({"max_steps": 1000}, 32),
        ({"max_epochs": 1}, 8),
        ({"overfit_batches": 2}, 8),
        ({"max_steps": 5, "accumulate_grad_batches": 3}, 5),
        ({"fast_dev_run": True}, 1),
        ({"fast_dev_run": 3}, 3),
        ({"reload_dataloaders_every_n_epochs": 1}, 32),
        ({"barebones": True, "enable_checkpointing": None, "enable_progress_bar": None, "logger": None,
          "enable_model_summary": None}, 32),
    ],
)  # fmt: skip
def test_shares_of_every_length(pl, settings, total):
    pruning, module = Pruning(sparsity=0.9, begin=0.25, end=0.75), make_module(pl)
    make_trainer(pl, pruning, **settings).fit(module, loader())
    begin, end, every = steps_of_shares(total, 0.25, 0.75, None)
    schedule = pruning.pruner.schedule
    assert (schedule.begin, schedule.end, schedule.every) == (begin, end, every)
    assert pruning.pruner.step == total
    assert pruning.pruner.last_update == end
    assert_done(pruning, module)


def test_accumulation_that_changes(either):
    accumulator = either.callbacks.GradientAccumulationScheduler({1: 2, 3: 5})
    pruning, module = Pruning(sparsity=0.9), make_module(either)
    make_trainer(either, accumulator, pruning).fit(module, loader())
    assert pruning.pruner.step == 8 + 4 + 4 + 2
    assert pruning.pruner.schedule.end == 9
    assert_done(pruning, module)


@pytest.mark.parametrize("settings", [{"max_steps": 20}, {"limit_train_batches": 5}])
def test_data_without_a_length(pl, settings):
    pruning, module = Pruning(sparsity=0.9), make_module(pl)
    make_trainer(pl, pruning, **settings).fit(module, DataLoader(Stream(), BATCH))
    assert pruning.pruner.step == 20
    assert pruning.pruner.schedule.end == 10
    assert_done(pruning, module)


@pytest.mark.parametrize("settings", [{}, {"max_epochs": -1}])
def test_a_length_that_nobody_knows_is_refused(pl, settings):
    pruning, module = Pruning(sparsity=0.9), make_module(pl)
    with pytest.raises(ValueError, match=r"no known length: max_steps=-1, max_epochs=-?\d\. Set Trainer\(max_steps=…"):
        make_trainer(pl, pruning, **settings).fit(module, DataLoader(Stream(), BATCH))
    assert zeros(module.net)[0] == 0


def test_arguments_reach_the_pruner(pl):
    pruning = Pruning(
        sparsity=0.5, begin=0.25, end=1.0, every=3, method=fggp.GMP(), schedule=fggp.linear, init_sparsity=0.25,
        init="uniform", scope="layer", floor=4, exclude="net.2.*", seed=5,
    )  # fmt: skip
    module = make_module(pl)
    make_trainer(pl, pruning).fit(module, loader())
    pruner = pruning.pruner
    expected = fggp.Schedule(0.5, 8, 32, 3, init_sparsity=0.25, curve=fggp.linear, last=32)
    assert pruner.schedule == expected
    assert (pruner.method, pruner.scope, pruner.seed) == (fggp.GMP(), "layer", 5)
    assert list(pruner.masks) == ["net.0.weight"]
    assert int((module.net[0].weight == 0).sum()) == 30
    assert int((module.net[2].weight == 0).sum()) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"end": 31_250}, ValueError, "end=31250 must lie in .* a share of training"),
        ({"begin": 0.5}, ValueError, "end=0.5 must be greater than begin=0.5"),
        ({"every": 0.1}, TypeError, "every=0.1 must be an int"),
    ],
)
def test_wrong_shares_are_refused_at_once(arguments, error, words):
    with pytest.raises(error, match=words):
        Pruning(sparsity=0.9, **arguments)


def test_what_the_pruner_refuses_is_refused_when_training_starts(pl):
    with pytest.raises(ValueError, match="sparsity=90 must lie in"):
        make_trainer(pl, Pruning(sparsity=90)).fit(make_module(pl), loader())


@pytest.mark.parametrize("method", ["rigl", "set", "granet", fggp.StaticERK()])
def test_other_methods(pl, method):
    floor = 2 if method == "granet" else None
    pruning, module = Pruning(sparsity=0.9, method=method, floor=floor), make_module(pl)
    make_trainer(pl, pruning).fit(module, loader())
    assert_settled(pruning, module)  # a weight that was regrown may not have moved from zero
    if method == "granet":
        assert pruning.pruner.method == fggp.GraNet(total_steps=32)


# What happens in a step


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", [make_adam, make_sgd])
def test_clipping_and_accumulation_come_before_pruning(pl, accumulate, optimizer):
    pruning, module = Pruning(sparsity=0.9), make_module(pl, optimizer)
    settings = {"gradient_clip_val": 0.1, "accumulate_grad_batches": accumulate}
    make_trainer(pl, pruning, **settings).fit(module, loader())
    total = 4 * math.ceil(BATCHES / accumulate)
    assert_same(module.net, plain_loop(total, accumulate=accumulate, optimizer=optimizer, clip=0.1)[0])


def test_bf16_mixed(pl):
    pruning, module = Pruning(sparsity=0.9), make_module(pl)
    make_trainer(pl, pruning, precision="bf16-mixed").fit(module, loader())
    assert_done(pruning, module)
    assert_same(module.net, plain_loop(32, dtype=torch.bfloat16)[0])


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_other_precisions(pl, precision):
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]
    pruning, module = Pruning(sparsity=0.9), make_module(pl)
    make_trainer(pl, pruning, precision=precision).fit(module, loader())
    assert module.net[0].weight.dtype == dtype
    assert_done(pruning, module)


def test_lightning_gives_the_optimizer_a_closure(pl):
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(closure is not None)
            return super().step(closure)

    pruning, module = Pruning(sparsity=0.9), make_module(pl, lambda parameters: Watched(parameters, lr=0.1))
    make_trainer(pl, pruning).fit(module, loader())
    assert seen == [True] * 32
    assert_done(pruning, module)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_training_steps_without_a_loss(pl):
    pruning = Pruning(sparsity=0.9)
    module = make_module(pl, training_step=lambda self, batch, i: None if i % 3 == 2 else self.loss(batch))
    with pytest.warns(RuntimeWarning, match="due at step 3 is postponed: no weight has a gradient"):
        make_trainer(pl, pruning).fit(module, loader())
    assert_done(pruning, module)


# Manual optimization


def manual(steps):
    """A training step of manual optimization, with ``steps(batch_idx)`` optimizer steps."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.manual_backward(loss)
        for _ in range(steps(batch_idx)):
            self.optimizers().step()
        if steps(batch_idx):
            self.optimizers().zero_grad()

    return {"training_step": training_step, "automatic_optimization": property(lambda self: False)}


@pytest.mark.parametrize(
    ("steps", "total", "end"),
    [
        (lambda i: 1, 32, 16),
        (lambda i: int(i % 2 == 1), 16, 8),
        (lambda i: int(i % 4 == 3), 8, 4),
        (lambda i: 5, 160, 80),
    ],
)
def test_manual_optimization_ends_at_the_share_too(pl, steps, total, end):
    pruning, module = Pruning(sparsity=0.9), make_module(pl, **manual(steps))
    make_trainer(pl, pruning).fit(module, loader())
    assert pruning.pruner.step == total
    assert pruning.pruner.schedule.end == end
    assert pruning.pruner.last_update == end
    assert_done(pruning, module)


def test_granet_of_manual_optimization_lasts_for_all_steps(pl):
    pruning = Pruning(sparsity=0.9, method="granet", floor=2)
    module = make_module(pl, **manual(lambda i: 5))
    make_trainer(pl, pruning).fit(module, loader())
    assert pruning.pruner.method == fggp.GraNet(total_steps=160)
    assert pruning.pruner.schedule.end == 80
    assert_settled(pruning, module)


@pytest.mark.parametrize(("steps", "window"), [(lambda i: int(i % 4 == 3), (4, 6)), (lambda i: 2, (32, 48))])
def test_manual_optimization_begins_at_the_share_too(pl, steps, window):
    sparsities = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            sparsities.append(pruning.pruner.sparsity)

    pruning, module = Pruning(sparsity=0.9, begin=0.5, end=0.75), make_module(pl, **manual(steps))
    make_trainer(pl, pruning, Watch()).fit(module, loader())
    assert (pruning.pruner.schedule.begin, pruning.pruner.schedule.end) == window
    assert max(sparsities[:16]) == 0
    assert sparsities[23] == pruning.pruner.sparsity > 0.89
    assert_done(pruning, module)


def two_optimizers(self):
    return [make_adam(self.net[0].parameters()), make_sgd(self.net[2].parameters())]


def test_several_optimizers_share_one_budget(pl):
    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    pruning = Pruning(sparsity=0.9)
    module = make_module(pl, **{**manual(int), "training_step": training_step, "configure_optimizers": two_optimizers})
    make_trainer(pl, pruning).fit(module, loader())
    assert pruning.pruner.step == 32
    assert pruning.pruner.schedule.end == 16
    assert_done(pruning, module)
    # max_steps counts the steps of both.
    pruning = Pruning(sparsity=0.9)
    module = make_module(pl, **{**manual(int), "training_step": training_step, "configure_optimizers": two_optimizers})
    make_trainer(pl, pruning, max_steps=40, max_epochs=-1).fit(module, loader())
    assert pruning.pruner.step == 20
    assert pruning.pruner.schedule.end == 10
    assert_done(pruning, module)


# Checkpoints


RESUMED = {
    "fggp": {},
    "regrowth": {"method": fggp.RigL(), "floor": 2},
    "granet": {"method": "granet", "init_sparsity": 0.5, "floor": 2},
    "sparse start": {"init_sparsity": 0.5},
    "keep": {"init": "keep"},
    "one-shot": {"method": fggp.StaticERK()},
}


@pytest.mark.parametrize("batch", [3, 8, 24])
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_bit_identical(pl, tmp_path, name, batch):
    path = tmp_path / "some.ckpt"
    pruning, module = Pruning(sparsity=0.9, **RESUMED[name]), make_module(pl)
    trainer = make_trainer(pl, pruning, SaveAt(pl, batch, path))
    trainer.fit(module, loader())
    assert_settled(pruning, module)

    again, resumed = Pruning(sparsity=0.9, **RESUMED[name]), make_module(pl, net=lambda: mlp(seed=1))
    second = make_trainer(pl, again)
    second.fit(resumed, loader(), ckpt_path=path, weights_only=True)
    assert_same(resumed, module)
    assert again.pruner.step == pruning.pruner.step
    assert again.pruner.schedule == pruning.pruner.schedule
    for own, other in zip(second.optimizers[0].state.values(), trainer.optimizers[0].state.values(), strict=True):
        assert all(torch.equal(own[key], other[key]) for key in ("exp_avg", "exp_avg_sq", "step"))


@pytest.mark.parametrize("batch", [2, 6, 8, 10])
def test_resumed_manual_optimization_keeps_its_pace(pl, tmp_path, batch):
    path, steps = tmp_path / "some.ckpt", manual(lambda i: int(i % 4 == 3))
    pruning, module = Pruning(sparsity=0.9, begin=0.25), make_module(pl, **steps)
    make_trainer(pl, pruning, SaveAt(pl, batch, path)).fit(module, loader())
    again, resumed = Pruning(sparsity=0.9, begin=0.25), make_module(pl, **steps)
    make_trainer(pl, again).fit(resumed, loader(), ckpt_path=path)
    assert again.pruner.schedule == pruning.pruner.schedule
    if batch in (8,):  # gradients that were accumulated are not in a checkpoint
        assert_same(resumed, module)
    assert_done(again, resumed)


def test_a_checkpoint_without_pruning_is_pruned_over_the_rest(pl, tmp_path):
    path, module = tmp_path / "dense.ckpt", make_module(pl)
    make_trainer(pl, SaveAt(pl, 16, path)).fit(module, loader())
    pruning, resumed = Pruning(sparsity=0.9, begin=0.25), make_module(pl)
    make_trainer(pl, pruning).fit(resumed, loader(), ckpt_path=path)
    assert (pruning.pruner.schedule.begin, pruning.pruner.schedule.end) == (4, 8)
    assert pruning.pruner.step == 16
    assert_done(pruning, resumed)


def test_the_same_callback_resumes_from_an_earlier_checkpoint(pl, tmp_path):
    path = tmp_path / "some.ckpt"
    pruning, module = Pruning(sparsity=0.9), make_module(pl)
    make_trainer(pl, pruning, SaveAt(pl, 8, path)).fit(module, loader())
    expected = copy.deepcopy(module.state_dict())
    make_trainer(pl, pruning).fit(module, loader(), ckpt_path=path)
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), expected.values(), strict=True))
    assert pruning.pruner.step == 32
    assert_done(pruning, module)


@pytest.mark.filterwarnings("ignore:this checkpoint is from before the end of pruning")
def test_a_test_of_another_module_leaves_the_pruner_alone(pl, tmp_path):
    path = tmp_path / "some.ckpt"
    pruning, module = Pruning(sparsity=0.9), make_module(pl)
    make_trainer(pl, pruning, SaveAt(pl, 8, path)).fit(module, loader())
    make_trainer(pl, pruning).test(make_module(pl), loader(), ckpt_path=path, verbose=False)
    assert_done(pruning, module)


def test_less_training_than_the_checkpoint_had_planned(pl, tmp_path):
    path = tmp_path / "some.ckpt"
    make_trainer(pl, Pruning(sparsity=0.9, end=0.9), SaveAt(pl, 8, path)).fit(make_module(pl), loader())
    pruning, module = Pruning(sparsity=0.9, end=0.9), make_module(pl)
    with pytest.warns(
        UserWarning, match="end at optimizer step 29, but this training goes from step 8 to 16: it now ends at step 15"
    ):
        make_trainer(pl, pruning, max_epochs=2).fit(module, loader(), ckpt_path=path)
    assert pruning.pruner.schedule.end == 15
    assert_done(pruning, module)


class Worsening:
    """A monitored number that is best at the beginning, as a loss may be when pruning starts."""

    @staticmethod
    def validation_step(self, batch, batch_idx):
        self.log("worse", float(self.trainer.global_step))


def test_the_best_checkpoint_has_the_final_sparsity(either, tmp_path):
    best = either.callbacks.ModelCheckpoint(tmp_path, monitor="worse", filename="{step}", save_last=True)
    pruning, module = (
        Pruning(sparsity=0.9, end=0.6, every=5),
        make_module(either, validation_step=Worsening.validation_step),
    )
    trainer = make_trainer(either, best, pruning)  # whichever order
    trainer.fit(module, loader(), loader())
    assert pruning.pruner.schedule.end == 19
    assert best.best_model_path.endswith("step=24.ckpt")
    assert best.best_model_score == 24
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "step=24.ckpt", "step=8.ckpt"]
    weights = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    assert sum(int((w == 0).sum()) for w in weights.values()) >= 81
    trainer.test(module, loader(), ckpt_path="best", verbose=False)  # no warning: it has the final sparsity
    assert_done(pruning, module)
    trainer.test(module, loader(), ckpt_path="last", verbose=False)
    assert_done(pruning, module)


def test_a_best_checkpoint_from_before_the_end_says_so(either, tmp_path):
    best = either.callbacks.ModelCheckpoint(tmp_path, monitor="worse", filename="{step}")
    pruning, module = (
        Pruning(sparsity=0.9, end=0.6, every=5),
        make_module(either, validation_step=Worsening.validation_step),
    )
    trainer = make_trainer(either, pruning, best)
    trainer.fit(module, loader(), loader())
    with pytest.warns(UserWarning, match=r"from before the end of pruning: .* is 54\.44% of 90\.00%, at .* 8 of 19"):
        trainer.test(module, loader(), ckpt_path=tmp_path / "step=8.ckpt", verbose=False)
    # The masks follow the weights, so that nothing contradicts.
    assert zeros(module.net)[0] == round(pruning.pruner.sparsity * WEIGHTS) == 49
    assert not pruning.pruner.finished
    fresh, loaded = Pruning(sparsity=0.9), make_module(either)
    best = either.callbacks.ModelCheckpoint(tmp_path, monitor="worse", filename="{step}")
    with pytest.warns(UserWarning, match="from before the end of pruning"):
        make_trainer(either, fresh, best).test(loaded, loader(), ckpt_path=tmp_path / "step=8.ckpt", verbose=False)
    assert zeros(loaded.net)[0] == 49


def test_nothing_saved_since_the_end_is_said(pl, tmp_path):
    best = pl.callbacks.ModelCheckpoint(tmp_path, monitor="worse", filename="{step}", every_n_epochs=3)
    pruning, module = (
        Pruning(sparsity=0.9, end=0.9, every=29),
        make_module(pl, validation_step=Worsening.validation_step),
    )
    with pytest.warns(
        UserWarning, match=r"'worse'\) has saved nothing since the final sparsity .* these have not: .*step=24"
    ):
        make_trainer(pl, pruning, best).fit(module, loader(), loader())


# Averaged copies


def batch_normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Linear(10, 3))


@pytest.mark.parametrize(("net", "order"), [(mlp, 1), (batch_normed, -1)])
@pytest.mark.parametrize("kind", ["ema", "average", "swa early", "swa late"])
def test_averages_have_the_zeros_of_the_model(pl, tmp_path, kind, order, net):
    callback = {
        "ema": lambda: pl.callbacks.EMAWeightAveraging(decay=0.9),
        "average": lambda: pl.callbacks.WeightAveraging(),
        "swa early": lambda: pl.callbacks.StochasticWeightAveraging(0.01, swa_epoch_start=1),
        "swa late": lambda: pl.callbacks.StochasticWeightAveraging(0.01, swa_epoch_start=0.8),
    }[kind]()
    pruning, module = Pruning(sparsity=0.9), make_module(pl, net=net)
    path = tmp_path / "last.ckpt"
    trainer = make_trainer(pl, *[pruning, callback][::order])
    trainer.fit(module, loader(), loader())
    assert pruning.pruner.schedule.end == 16
    assert_done(pruning, module)
    dense = make_module(pl, net=net)
    make_trainer(pl, Pruning(sparsity=0.9)).fit(dense, loader())
    assert not torch.equal(dense.net[0].weight, module.net[0].weight)  # it is an average
    trainer.save_checkpoint(path)
    weights = torch.load(path, weights_only=True)["state_dict"]
    assert sum(int((w == 0).sum()) for name, w in weights.items() if w.ndim == 2) == 81


def test_validation_sees_the_average_with_zeros(pl):
    seen = []

    def validation_step(self, batch, batch_idx):
        seen.append(zeros(self.net)[0])
        assert zeros(self.net)[0] == round(pruning.pruner.sparsity * WEIGHTS) if pruning._pruner else True

    pruning, module = Pruning(sparsity=0.9), make_module(pl, validation_step=validation_step)
    make_trainer(pl, pl.callbacks.EMAWeightAveraging(decay=0.9), pruning).fit(module, loader(), loader())
    assert seen[-1] == 81
    assert 0 < seen[2 + BATCHES - 1] < 81


@pytest.mark.parametrize(
    ("kind", "batch", "end"),
    [
        ("EMAWeightAveraging", 8, 0.5),
        ("EMAWeightAveraging", 12, 0.5),
        ("EMAWeightAveraging", 24, 0.5),
        ("EMAWeightAveraging", 26, 1.0),  # all updates that are left are in this epoch
        (
            "StochasticWeightAveraging",
            12,
            0.5,
        ),  # between two epochs it does not resume exactly, with or without pruning
    ],
)
def test_averages_resume_bit_identical(pl, tmp_path, kind, batch, end):
    def average():
        arguments = {"decay": 0.9} if kind == "EMAWeightAveraging" else {"swa_lrs": 0.01, "swa_epoch_start": 2}
        return getattr(pl.callbacks, kind)(**arguments)

    path = tmp_path / "some.ckpt"
    pruning, module = Pruning(sparsity=0.9, end=end, schedule=fggp.linear), make_module(pl)
    make_trainer(pl, average(), pruning, SaveAt(pl, batch, path)).fit(module, loader())
    again, resumed = Pruning(sparsity=0.9, end=end, schedule=fggp.linear), make_module(pl)
    make_trainer(pl, average(), again).fit(resumed, loader(), ckpt_path=path)
    assert_same(resumed, module)
    assert_done(again, resumed)


def averaged_net(pl, trainable, **methods):
    """A LightningModule that keeps an average of its net by itself."""
    module = make_module(
        pl,
        configure_optimizers=lambda self: make_adam(self.net.parameters()),
        on_train_batch_end=lambda self, *_: self.average.update_parameters(self.net),
        **methods,
    )
    module.average = AveragedModel(module.net).requires_grad_(trainable)
    return module


@pytest.mark.parametrize("exclude", [None, "*.bias", [nn.BatchNorm1d, "*.bias"]])
def test_an_average_within_the_module(pl, tmp_path, exclude):
    path = tmp_path / "some.ckpt"
    pruning, module = Pruning(sparsity=0.9, exclude=exclude), averaged_net(pl, True)
    module.net[1] = nn.BatchNorm1d(10)
    module.average = AveragedModel(module.net)
    make_trainer(pl, pruning, SaveAt(pl, 12, path)).fit(module, loader())
    assert list(pruning.pruner.masks) == ["net.0.weight", "net.2.weight"]
    assert pruning.pruner.check() == []
    assert zeros(module.net)[0] == 81
    model, average = zeros(module.net)[1], zeros(module.average)[1]
    assert all(torch.equal(a, b) for a, b in zip(model, average, strict=True))
    assert not torch.equal(module.net[0].weight, module.average.module[0].weight)
    resumed = averaged_net(pl, True)
    resumed.net[1] = nn.BatchNorm1d(10)
    resumed.average = AveragedModel(resumed.net)
    make_trainer(pl, Pruning(sparsity=0.9, exclude=exclude)).fit(resumed, loader(), ckpt_path=path)
    assert_same(resumed.net, module.net)


@pytest.mark.filterwarnings("ignore:only 43.7% of the model's")
def test_a_frozen_average_within_the_module(pl):
    pruning, module = Pruning(sparsity=0.9), averaged_net(pl, False)
    make_trainer(pl, pruning).fit(module, loader())
    assert zeros(module.net)[0] == zeros(module.average)[0] == 81


def test_an_average_of_one_of_two_parts(pl):
    pruning, module = Pruning(sparsity=0.9), averaged_net(pl, True)
    module.twin = mlp().requires_grad_(False)
    with pytest.warns(UserWarning, match="'average' stays dense: .* may be the average of 'net' or 'twin' in Module"):
        make_trainer(pl, pruning).fit(module, loader())
    assert pruning.pruner.finished


# What is no training


def test_sanity_checks_and_validation_take_no_steps(pl):
    during = []

    def validation_step(self, batch, batch_idx):
        if self.trainer.sanity_checking:
            during.append((self.trainer.global_step, zeros(self.net)[0]))

    pruning, module = Pruning(sparsity=0.9), make_module(pl, validation_step=validation_step)
    make_trainer(pl, pruning, val_check_interval=3, num_sanity_val_steps=-1).fit(module, loader(), loader())
    assert during == [(0, 0)] * BATCHES
    assert pruning.pruner.step == 32
    assert_same(module.net, plain_loop(32)[0])


@pytest.mark.parametrize("how", ["callback", "tuner"])
def test_the_lr_finder_takes_no_steps_and_prunes_nothing(either, tmp_path, how):
    pruning, module = Pruning(sparsity=0.9), make_module(either)
    settings = {"default_root_dir": tmp_path}
    finder = either.callbacks.LearningRateFinder(num_training_steps=20, update_attr=False)
    trainer = make_trainer(either, pruning, *([finder] if how == "callback" else []), **settings)
    if how == "tuner":
        importlib.import_module(f"{either.__name__}.tuner").Tuner(trainer).lr_find(
            module, loader(), num_training=20, update_attr=False
        )
        assert zeros(module.net)[0] == 0
        assert trainer.global_step == 0
    trainer.fit(module, loader())
    assert pruning.pruner.step == 32
    assert_same(module.net, plain_loop(32)[0])


def test_the_lr_finder_between_two_epochs(pl, tmp_path):
    class Later(pl.callbacks.LearningRateFinder):
        def on_fit_start(self, *_):
            pass

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                before = pruning.pruner.step, zeros(pl_module.net)[0]
                self.lr_find(trainer, pl_module)
                assert (pruning.pruner.step, zeros(pl_module.net)[0]) == before == (8, 71)

    pruning, module = Pruning(sparsity=0.9), make_module(pl)
    finder = Later(num_training_steps=20, update_attr=False)
    make_trainer(pl, pruning, finder, default_root_dir=tmp_path).fit(module, loader())
    assert pruning.pruner.finished
    assert zeros(module.net)[0] == 81


def test_the_batch_size_finder_takes_no_steps_and_decides_the_length(either, tmp_path):
    pruning, module = (
        Pruning(sparsity=0.9),
        make_module(
            either,
            train_dataloader=lambda self: loader(self.batch_size),
            validation_step=either.LightningModule.validation_step,
        ),
    )
    module.batch_size = 4
    finder = either.callbacks.BatchSizeFinder(init_val=2, max_trials=3, steps_per_trial=2)
    make_trainer(either, pruning, finder, default_root_dir=tmp_path).fit(module)
    assert pruning.pruner.step == 4 * 32 // module.batch_size
    assert pruning.pruner.schedule.end == pruning.pruner.step // 2
    assert_done(pruning, module)


def test_testing_without_fit(either):
    pruning, module = Pruning(sparsity=0.9), make_module(either)
    trainer = make_trainer(either, pruning)
    trainer.test(module, loader(), verbose=False)
    trainer.validate(module, loader(), verbose=False)
    assert zeros(module.net)[0] == 0
    with pytest.raises(RuntimeError, match="made when the trainer starts to train"):
        pruning.pruner  # noqa: B018
    assert pruning.state_dict() == {}


def test_no_training_at_all(pl):
    pruning, module = Pruning(sparsity=0.9), make_module(pl)
    make_trainer(pl, pruning, limit_train_batches=0).fit(module, loader())
    assert zeros(module.net)[0] == 0


# What is said


def test_sparsity_is_logged(either, tmp_path):
    logger = either.loggers.CSVLogger(tmp_path / "log")
    pruning, module = Pruning(sparsity=0.9), make_module(either)
    best = either.callbacks.ModelCheckpoint(tmp_path / "all", filename="{epoch}-{sparsity:.2f}", save_top_k=-1)
    trainer = make_trainer(either, pruning, best, logger=logger, log_every_n_steps=1)
    trainer.fit(module, loader())
    with open(f"{logger.log_dir}/metrics.csv") as file:
        logged = [float(row["sparsity"]) for row in csv.DictReader(file)]
    assert len(logged) == 32
    assert logged == sorted(logged)
    assert logged[-1] == logged[15] == pytest.approx(0.9)
    assert trainer.callback_metrics["sparsity"] == pytest.approx(0.9)
    assert (tmp_path / "all" / "epoch=1-sparsity=0.90.ckpt").exists()


def test_training_that_stops_early_says_where_pruning_is(either, tmp_path):
    def validation_step(self, batch, batch_idx):
        self.log("worse", float(self.trainer.global_step))

    stopping = either.callbacks.EarlyStopping("worse", patience=1)
    best = either.callbacks.ModelCheckpoint(tmp_path, monitor="worse", filename="{step}")
    pruning, module = Pruning(sparsity=0.9, end=1.0), make_module(either, validation_step=validation_step)
    words = (
        r"sparsity is 78\.\d\d% of 90\.00%\. Training ended after optimizer step 16, pruning ends at step 32\. "
        r".*finish\(\).*No checkpoint has the final sparsity: .*step=8\.ckpt"
    )
    with pytest.warns(UserWarning, match=words):
        make_trainer(either, pruning, stopping, best).fit(module, loader(), loader())
    pruning.pruner.finish()
    assert_done(pruning, module)


def test_early_stopping_compares_models_of_the_final_sparsity(pl):
    def validation_step(self, batch, batch_idx):
        # Best before pruning ends at step 8, then worse, but better and better.
        self.log("loss", 0.0 if self.trainer.global_step < 8 else 100.0 - self.trainer.global_step)

    stopping = pl.callbacks.EarlyStopping("loss", patience=3)
    pruning, module = Pruning(sparsity=0.9, end=0.25), make_module(pl, validation_step=validation_step)
    make_trainer(pl, pruning, stopping, val_check_interval=0.25).fit(module, loader(), loader())
    assert pruning.pruner.step == 32
    assert_done(pruning, module)


# A second fit


def test_a_second_fit_keeps_the_zeros(either):
    pruning, module = Pruning(sparsity=0.9), make_module(either)
    make_trainer(either, pruning).fit(module, loader())
    _, before = zeros(module.net)
    weight = module.net[0].weight.detach().clone()
    make_trainer(either, pruning).fit(module, loader())
    assert not torch.equal(module.net[0].weight, weight)
    assert all(torch.equal(a, b) for a, b in zip(before, zeros(module.net)[1], strict=True))
    assert pruning.pruner.step == 64
    assert_done(pruning, module)


def test_a_second_fit_of_the_same_trainer(pl):
    pruning, module = Pruning(sparsity=0.9, end=1.0), make_module(pl)
    trainer = make_trainer(pl, pruning, max_steps=8, max_epochs=-1)
    trainer.fit(module, loader())
    trainer.fit_loop.epoch_loop.max_steps = 24
    trainer.fit(module, loader())
    assert pruning.pruner.step == 24
    assert_done(pruning, module)


def test_a_second_fit_prunes_what_the_first_left(pl):
    pruning, module = Pruning(sparsity=0.9, end=0.75), make_module(pl)
    with pytest.warns(UserWarning, match="Training ended after optimizer step 4, pruning ends at step 24"):
        make_trainer(pl, pruning, Stop(pl, 4)).fit(module, loader())
    make_trainer(pl, pruning).fit(module, loader())
    assert pruning.pruner.schedule.end == 24
    assert_done(pruning, module)


def test_a_second_fit_that_is_too_short_for_the_rest(pl):
    pruning, module = Pruning(sparsity=0.9, end=0.75), make_module(pl)
    with pytest.warns(UserWarning, match="Training ended after optimizer step 4, pruning ends at step 24"):
        make_trainer(pl, pruning, Stop(pl, 4)).fit(module, loader())
    with pytest.warns(
        UserWarning, match="at optimizer step 24, but this training goes from step 4 to 12: it now ends at step 10"
    ):
        make_trainer(pl, pruning, max_epochs=1).fit(module, loader())
    assert_done(pruning, module)


def test_another_model_gets_a_pruner_of_its_own(pl):
    pruning, first, second = Pruning(sparsity=0.9), make_module(pl), make_module(pl)
    make_trainer(pl, pruning).fit(first, loader())
    make_trainer(pl, pruning).fit(second, loader())
    assert pruning.pruner.step == 32
    assert_same(first, second)
    assert_done(pruning, second)


# Layers that are thawed


def trainable_only(self):
    return make_adam([p for p in self.parameters() if p.requires_grad])


def thaw_after_one_epoch(pl):
    class Thaw(pl.callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.net[0])

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)

    return Thaw()


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.filterwarnings("ignore:only 29.1% of the model's")
def test_thawed_layers_are_pruned_too(either, order):
    pruning, module = Pruning(sparsity=0.9), make_module(either, configure_optimizers=trainable_only)
    make_trainer(either, *[pruning, thaw_after_one_epoch(either)][::order]).fit(module, loader())
    assert pruning.pruner.schedule.end == 16
    assert zeros(module.net)[0] == 81
    assert list(pruning.pruner.masks) == ["net.0.weight", "net.2.weight"]


@pytest.mark.filterwarnings("ignore:only 29.1% of the model's")
def test_layers_thawed_after_the_end_of_pruning(pl):
    pruning, module = Pruning(sparsity=0.9, end=0.25), make_module(pl, configure_optimizers=trainable_only)
    with pytest.warns(UserWarning, match="trainable after pruning ended, at optimizer step 8: it now ends at step 14"):
        make_trainer(pl, thaw_after_one_epoch(pl), pruning).fit(module, loader())
    assert zeros(module.net)[0] == 81
    assert pruning.pruner.finished


@pytest.mark.parametrize("batch", [4, 12])
@pytest.mark.filterwarnings("ignore:only 29.1% of the model's")
def test_thawed_layers_resume(pl, tmp_path, batch):
    path = tmp_path / "some.ckpt"
    pruning, module = Pruning(sparsity=0.9), make_module(pl, configure_optimizers=trainable_only)
    make_trainer(pl, thaw_after_one_epoch(pl), pruning, SaveAt(pl, batch, path)).fit(module, loader())
    again, resumed = Pruning(sparsity=0.9), make_module(pl, configure_optimizers=trainable_only)
    trainer = make_trainer(pl, thaw_after_one_epoch(pl), again)
    if batch == 4:
        trainer.fit(resumed, loader(), ckpt_path=path)
        assert_same(resumed, module)
    else:  # Lightning leaves the layer frozen that had been thawed
        with pytest.warns(RuntimeWarning, match=r"'net\.0\.weight' had no gradient in 3 updates in a row"):
            trainer.fit(resumed, loader(), ckpt_path=path)
    assert zeros(resumed.net)[0] == 81
    assert again.pruner.finished


# Models and processes


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes(tmp_path, kind):
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests / "stacks")])}
    command = [sys.executable, tests / "stacks" / "lightning_processes.py", kind, tmp_path]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_layers_that_configure_model_makes(pl):
    def configure_model(self):
        if len(self.net) == 0:
            self.net = mlp()

    pruning, module = Pruning(sparsity=0.9), make_module(pl, net=nn.Sequential, configure_model=configure_model)
    make_trainer(pl, pruning).fit(module, loader())
    assert_done(pruning, module)
    assert_same(module.net, plain_loop(32)[0])


def test_a_callback_can_be_copied_and_pickled_before_fit(pl):
    for pruning in (copy.deepcopy(Pruning(0.9)), pickle.loads(pickle.dumps(Pruning(0.9)))):
        module = make_module(pl)
        make_trainer(pl, pruning).fit(module, loader())
        assert_done(pruning, module)


def test_the_page_shows_what_runs(pl):
    names = {"module": make_module(pl), "loader": loader()}
    code = page.code("Lightning").replace("max_epochs=90", "max_epochs=4, logger=False, enable_checkpointing=False")
    exec(code, names)
    assert names["pruning"].pruner.finished
    assert zeros(names["module"].net)[0] == 81


def test_the_core_does_not_import_lightning():
    code = "import sys, fggp; assert not {'lightning', 'pytorch_lightning', 'lightning_fabric'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_lightning_the_extra_is_named():
    code = "import sys\nsys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\nimport fggp.lightning"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'fggp[lightning]'" in result.stderr
