"""The callback in real Lightning, of both packages, on the CPU."""

import copy
import csv
import importlib
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("lightning")

import fggp
import page
from fggp.lightning import Pruning
from helpers import mlp
from lightning_runs import (
    BATCHES,
    WARNINGS,
    SaveAt,
    Stop,
    assert_done,
    assert_same,
    assert_settled,
    loader,
    make_adam,
    make_module,
    make_sgd,
    make_trainer,
    plain_loop,
    worsening,
    zeros,
)

pytestmark = [pytest.mark.filterwarnings(w) for w in WARNINGS]


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
    stopping = either.callbacks.EarlyStopping("worse", patience=1)
    best = either.callbacks.ModelCheckpoint(tmp_path, monitor="worse", filename="{step}")
    pruning, module = Pruning(sparsity=0.9, end=1.0), make_module(either, validation_step=worsening)
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
