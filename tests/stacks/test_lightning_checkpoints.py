"""Checkpoints of Lightning: what resumes from them, and which is the best."""

import copy

import pytest
import torch

pytest.importorskip("lightning")

import fggp
from fggp.lightning import Pruning
from helpers import mlp
from lightning_runs import (
    WARNINGS,
    WEIGHTS,
    SaveAt,
    assert_done,
    assert_same,
    assert_settled,
    loader,
    make_module,
    make_trainer,
    manual,
    worsening,
    zeros,
)

pytestmark = [pytest.mark.filterwarnings(w) for w in WARNINGS]


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
    if batch == 8:  # gradients that were accumulated are not in a checkpoint
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


def test_the_best_checkpoint_has_the_final_sparsity(either, tmp_path):
    best = either.callbacks.ModelCheckpoint(tmp_path, monitor="worse", filename="{step}", save_last=True)
    pruning, module = Pruning(sparsity=0.9, end=0.6, every=5), make_module(either, validation_step=worsening)
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
    pruning, module = Pruning(sparsity=0.9, end=0.6, every=5), make_module(either, validation_step=worsening)
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
    pruning, module = Pruning(sparsity=0.9, end=0.9, every=29), make_module(pl, validation_step=worsening)
    with pytest.warns(
        UserWarning, match=r"'worse'\) has saved nothing since the final sparsity .* these have not: .*step=24"
    ):
        make_trainer(pl, pruning, best).fit(module, loader(), loader())
