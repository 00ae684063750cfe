"""When the callback prunes in Lightning: shares of trainings whose length is given in many ways, or measured."""

import pytest
from torch.utils.data import DataLoader

pytest.importorskip("lightning")

import fggp
from fggp.lightning import Pruning
from fggp.training_shares import steps_of_shares
from lightning_runs import (
    BATCH,
    WARNINGS,
    Stream,
    assert_done,
    assert_settled,
    loader,
    make_adam,
    make_module,
    make_sgd,
    make_trainer,
    manual,
    zeros,
)

pytestmark = [pytest.mark.filterwarnings(w) for w in WARNINGS]


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


# Manual optimization


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
