"""Checkpoints of the Trainer: what resumes from them."""

import json
import shutil
import warnings

import pytest

import fggp
from helpers import identical

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import BertForSequenceClassification, TrainerCallback

from fggp.transformers import Pruning
from transformers_runs import TARGET, assert_pruned, bert, everything, trainer_for

CONFIGURATIONS = {
    "default": {},
    "random, by layer": {"method": "random", "scope": "layer", "seed": 5},
    "granet": {"method": "granet", "init_sparsity": 0.5, "every": 2},
    "rigl": {"method": "rigl", "every": 2},
    "static": {"method": fggp.StaticERK()},
}


@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(options, folder, tmp_path):
    def trainer_in(place, pruning):
        return trainer_for(bert(), place, [pruning], gradient_accumulation_steps=2, save_strategy="steps", save_steps=3)

    unbroken = Pruning(TARGET, **options)
    trainer = trainer_in(folder, unbroken)
    trainer.train()
    expected = everything(trainer, unbroken.pruner)
    for step in (3, 6, 9):  # before, and twice after the target is reached at step 5
        moved = shutil.copytree(folder / f"checkpoint-{step}", tmp_path / f"elsewhere-{step}")
        resumed = Pruning(TARGET, **options)
        trainer = trainer_in(tmp_path / f"other-{step}", resumed)
        trainer.train(resume_from_checkpoint=str(moved))
        assert resumed.pruner.step == 10
        assert identical(expected, everything(trainer, resumed.pruner)), step


def test_resuming_in_the_same_process_goes_back_to_the_checkpoint(folder):
    pruning = Pruning(TARGET)
    trainer = trainer_for(bert(), folder, [pruning], save_strategy="steps", save_steps=4)
    trainer.train()
    expected = everything(trainer, pruning.pruner)
    pruner = pruning.pruner
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert pruning.pruner is pruner
    assert pruner.step == 20
    assert identical(expected, everything(trainer, pruner))


def test_resume_by_the_folder_alone_and_for_longer(folder):
    def trainer_in(pruning, epochs):
        return trainer_for(bert(), folder, [pruning], num_train_epochs=epochs, save_strategy="steps", save_steps=3)

    trainer_in(Pruning(TARGET), 1).train()
    shutil.rmtree(folder / "checkpoint-10")
    shutil.rmtree(folder / "checkpoint-9")
    resumed = Pruning(TARGET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of PyTorch's scheduler
        trainer_in(resumed, 3).train(resume_from_checkpoint=True)
    # The schedule of the checkpoint goes on; it is in steps.
    assert (resumed.pruner.step, resumed.pruner.schedule.end) == (30, 5)
    assert_pruned(resumed.pruner)


def test_a_run_that_is_resumed_for_less_prunes_faster_and_says_so(folder):
    trainer_for(bert(), folder, [Pruning(TARGET, floor=2)], save_strategy="steps", save_steps=4).train()
    resumed = Pruning(TARGET, floor=2)
    trainer = trainer_for(bert(), folder / "less", [resumed], max_steps=8)
    with pytest.warns(UserWarning, match=r"was to end at optimizer step 10, .* now ends at step 8: .* step 6"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert (resumed.pruner.step, resumed.pruner.last_update) == (8, 6)
    assert_pruned(resumed.pruner)


def test_checkpoints_of_the_model_alone_keep_the_masks(folder):
    options = {"save_strategy": "steps", "save_steps": 8, "save_only_model": True}
    first = Pruning(TARGET)
    trainer_for(bert(), folder, [first], **options).train()
    assert not (folder / "checkpoint-8" / "optimizer.pt").exists()
    saved = BertForSequenceClassification.from_pretrained(folder / "checkpoint-8")
    resumed = Pruning(TARGET)
    zeros = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            names = resumed.pruner.masks
            zeros.append(all(not model.get_parameter(n)[saved.get_parameter(n) == 0].any() for n in names))

    trainer_for(bert(), folder, [resumed, Watch()], **options).train(
        resume_from_checkpoint=str(folder / "checkpoint-8")
    )
    assert zeros == [True] * 12
    assert resumed.pruner.step == 20
    assert_pruned(resumed.pruner)


def test_a_checkpoint_of_dense_training_is_pruned_over_the_rest(folder):
    trainer_for(bert(), folder, [], save_strategy="steps", save_steps=4).train()
    pruning = Pruning(TARGET)
    trainer_for(bert(), folder, [pruning]).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert (pruning.pruner.step, pruning.pruner.schedule.end) == (16, 8)
    assert_pruned(pruning.pruner)


def test_a_checkpoint_with_another_target_says_so(folder):
    trainer_for(bert(), folder, [Pruning(TARGET)], save_strategy="steps", save_steps=4).train()
    resumed = Pruning(0.95)
    with pytest.warns(UserWarning, match=r"0\.9.*0\.95|0\.95.*0\.9"):
        trainer_for(bert(), folder, [resumed]).train(resume_from_checkpoint=str(folder / "checkpoint-4"))


def test_the_state_is_small_plain_text(folder):
    trainer_for(bert(), folder, [Pruning(TARGET)], save_strategy="steps", save_steps=10).train()
    state = json.loads((folder / "checkpoint-10" / "trainer_state.json").read_text())
    text = state["stateful_callbacks"]["Pruning"]["attributes"]["pruner_state"]
    assert text.isascii()
    assert len(text) < 12_000  # mostly the names and sizes of 14 weights; the masks of 4,384 weights are 548 bytes


def test_the_trainer_may_restore_its_callbacks(folder):
    options = {"save_strategy": "steps", "save_steps": 3, "restore_callback_states_from_checkpoint": True}
    unbroken = Pruning(TARGET, exclude=["classifier*"], scope="layer")
    trainer = trainer_for(bert(), folder, [unbroken], **options)
    trainer.train()
    expected = everything(trainer, unbroken.pruner)
    trainer = trainer_for(bert(), folder, [Pruning(0.5)], **options)  # the Trainer replaces it by the one that it saved
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    [restored] = [c for c in trainer.callback_handler.callbacks if isinstance(c, Pruning)]
    assert identical(expected, everything(trainer, restored.pruner))


def test_restored_callbacks_need_arguments_that_json_holds(folder):
    with pytest.raises(
        ValueError, match=r"restore_callback_states_from_checkpoint=True .* cannot hold method=FGGP\(rate=0\.3\)"
    ):
        trainer_for(
            bert(), folder, [Pruning(TARGET, method=fggp.FGGP(0.3))], restore_callback_states_from_checkpoint=True
        )
