"""The best model of the Trainer, and training that ends early."""

import pytest

from helpers import identical

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import BertForSequenceClassification, EarlyStoppingCallback

from fggp.transformers import Pruning
from transformers_runs import TARGET, Stop, assert_pruned, bert, trainer_for


def scores(*values):
    """A metric that has these values at the evaluations, one after the other."""
    left = list(values)
    return lambda prediction: {"score": left.pop(0)}


def best_of(folder, pruning, values, callbacks=(), **options):
    """Train with evaluations and checkpoints every four of 20 steps; the target is reached at step 10."""
    trainer = trainer_for(
        bert(),
        folder,
        [pruning, *callbacks],
        **{"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4},
        metric_for_best_model="score",
        greater_is_better=True,
        load_best_model_at_end=True,
        **options,
    )
    trainer.compute_metrics = scores(*values)
    return trainer


@pytest.mark.parametrize("limit", [None, 1, 2])
def test_the_best_model_is_one_at_the_target(limit, folder):
    pruning = Pruning(TARGET)
    trainer = best_of(folder, pruning, [0.9, 0.8, 0.6, 0.7, 0.5], save_total_limit=limit)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(folder / "checkpoint-16")
    assert trainer.state.best_metric == 0.7
    assert_pruned(pruning.pruner)
    saved = BertForSequenceClassification.from_pretrained(folder / "checkpoint-16")
    assert identical(dict(trainer.model.state_dict()), dict(saved.state_dict()))
    assert (folder / "checkpoint-16").exists()


def test_the_best_model_of_a_resumed_run_is_one_at_the_target(folder):
    trainer = best_of(folder, Pruning(TARGET), [0.9, 0.8, 0.6, 0.7, 0.5])
    trainer.train()
    for step, values in {8: [0.6, 0.7, 0.5], 12: [0.7, 0.5], 16: [0.5]}.items():
        pruning = Pruning(TARGET)
        trainer = best_of(folder, pruning, values)
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        assert trainer.state.best_model_checkpoint == str(folder / "checkpoint-16")
        assert_pruned(pruning.pruner)


def test_only_the_best_is_saved(folder):
    pruning = Pruning(TARGET)
    trainer = trainer_for(
        bert(), folder, [pruning], eval_strategy="steps", eval_steps=4, save_strategy="best", save_only_model=True,
        metric_for_best_model="score", greater_is_better=True, load_best_model_at_end=True,
    )  # fmt: skip
    trainer.compute_metrics = scores(0.9, 0.8, 0.6, 0.7, 0.5)
    trainer.train()
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-16", "checkpoint-4"]
    assert_pruned(pruning.pruner)


@pytest.mark.parametrize(
    "options", [{"method": "granet", "end": 0.2, "floor": 2}, {"method": "rigl"}], ids=["granet", "rigl"]
)
def test_masks_follow_the_best_model_where_they_still_change(options, folder):
    # GraNet exchanges weights after the target is reached, and RigL is at the target from the start.
    pruning = Pruning(TARGET, **options)
    trainer = best_of(folder, pruning, [0.1, 0.9, 0.8, 0.7, 0.6])
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(folder / "checkpoint-8")
    assert pruning.pruner.step == 8
    assert_pruned(pruning.pruner)
    saved = BertForSequenceClassification.from_pretrained(folder / "checkpoint-8")
    assert identical(dict(trainer.model.state_dict()), dict(saved.state_dict()))


def test_no_best_model_at_the_target_is_said(folder):
    pruning = Pruning(TARGET)
    trainer = best_of(folder, pruning, [0.8, 0.9], [Stop(11)])
    with pytest.warns(UserWarning, match=r"reached, at optimizer step 10\. .*checkpoint-8 is less sparse"):
        trainer.train()
    assert pruning.pruner.step == 11
    assert_pruned(pruning.pruner)


def test_training_that_stops_early_says_so(folder):
    pruning = Pruning(TARGET)
    trainer = trainer_for(bert(), folder, [pruning, Stop(6)])
    with pytest.warns(UserWarning, match=r"is 8\d\.\d\d% of 90\.00%\. .* step 6 of 20; pruning ends at step 10"):
        trainer.train()
    assert not pruning.pruner.finished
    pruning.pruner.finish()
    assert_pruned(pruning.pruner)


def test_early_stopping_before_the_target_loads_the_best_model_and_says_so(folder):
    pruning = Pruning(TARGET, end=1.0)
    trainer = best_of(folder, pruning, [0.9, 0.8, 0.7, 0.6], [EarlyStoppingCallback(2)])
    with pytest.warns(UserWarning, match=r"step 12 of 20, and .* has loaded checkpoint-4; .* at step 20\."):
        trainer.train()
    saved = BertForSequenceClassification.from_pretrained(folder / "checkpoint-4")
    assert identical(dict(trainer.model.state_dict()), dict(saved.state_dict()))
    for name, mask in pruning.pruner.masks.items():
        assert not saved.get_parameter(name)[~mask].any()
    assert pruning.pruner.step == 4


def test_early_stopping_counts_from_the_target(folder):
    pruning = Pruning(TARGET)
    # From the target on, at step 10, nothing is worse than the first score there.
    trainer = best_of(folder, pruning, [0.9, 0.8, 0.6, 0.7, 0.5], [EarlyStoppingCallback(2)])
    trainer.train()
    assert trainer.state.global_step == 20
    assert_pruned(pruning.pruner)
