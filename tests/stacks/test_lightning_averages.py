"""Averages of weights in Lightning: in its callbacks, and in the LightningModule itself."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

pytest.importorskip("lightning")

import fggp
from fggp.lightning import Pruning
from helpers import mlp
from lightning_runs import (
    BATCHES,
    WARNINGS,
    WEIGHTS,
    SaveAt,
    assert_done,
    assert_same,
    loader,
    make_adam,
    make_module,
    make_trainer,
    zeros,
)

pytestmark = [pytest.mark.filterwarnings(w) for w in WARNINGS]


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
