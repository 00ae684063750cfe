"""`fggp.transformers.Pruning` in the real Trainer, on a CPU."""

import copy
import json
import shutil
import warnings

import pytest
import torch
from torch import nn

import fggp
import helpers
from helpers import identical
from page import code

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from fggp.training_shares import steps_of_shares
from fggp.transformers import Pruning

TARGET = 0.9
EXAMPLES, BATCH = 40, 4  # ten batches an epoch


def bert(seed=0):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=32, max_position_embeddings=16))


def mixtral(seed=0):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads, max_position_embeddings=16))


class Plain(nn.Module):
    """A model that is not of the library: it returns its loss itself."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Embedding(40, 6), nn.Flatten(), nn.Linear(48, 10), nn.ReLU(), nn.Linear(10, 2))

    def forward(self, input_ids, labels=None):
        logits = self.layers(input_ids)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class Examples(torch.utils.data.Dataset):
    def __init__(self, causal=False, size=EXAMPLES):
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(40, (size, 8), generator=generator)
        self.labels = self.ids if causal else (self.ids[:, 0] % 2)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


def trainer_for(model, folder, callbacks, data=None, optimizers=(None, None), model_init=None, **options):
    arguments = TrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "per_device_train_batch_size": BATCH,
            "num_train_epochs": 2,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            **options,
        }
    )
    data = data or Examples()
    return Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data,
        model_init=model_init,
        callbacks=callbacks,
        optimizers=optimizers,
    )


def everything(trainer, pruner):
    """Model, optimizer and pruner, to the bit."""
    return copy.deepcopy(
        [trainer.model.state_dict(), trainer.optimizer.state_dict(), pruner.state_dict(), dict(pruner.masks)]
    )


def zeros_of(weights):
    """The share of zeros in tensors."""
    weights = list(weights)
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def assert_pruned(pruner, target=TARGET):
    """The share of zeros is exact, in the masks and in the weights."""
    weights = helpers.pruned_parameters(pruner).values()
    total = sum(w.numel() for w in weights)
    assert sum(int(m.sum()) for m in pruner.masks.values()) == round((1 - target) * total)
    for weight, mask in zip(weights, pruner.masks.values(), strict=True):
        assert not weight[~mask].any()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


# The length of training


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 20),
        ({"gradient_accumulation_steps": 2}, 10),
        ({"gradient_accumulation_steps": 4}, 6),  # the last step of an epoch has two batches instead of four
        ({"max_steps": 7}, 7),
        ({"num_train_epochs": 1.3}, 13),
        ({"bf16": True}, 20),
        ({"max_grad_norm": 0.01}, 20),
        ({"optim": "sgd"}, 20),
        ({"optim": "adafactor"}, 20),
        ({"per_device_train_batch_size": 16}, 6),
        ({"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 4}, 4),
    ],
    ids=lambda value: ",".join(map(str, value)) if isinstance(value, dict) else str(value),
)
def test_the_target_is_reached_at_the_middle_of_training(options, steps, folder):
    reached = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            reached.append(pruning.pruner.sparsity)

    pruning = Pruning(TARGET, floor=1)  # some of these trainings are so short that layers would die
    trainer = trainer_for(bert(), folder, [pruning, Watch()], **options)
    trainer.train()
    assert len(reached) == pruning.pruner.step == trainer.state.global_step == steps
    expected = steps_of_shares(steps, 0.0, 0.5, None)
    assert (pruning.pruner.schedule.begin, pruning.pruner.schedule.end, pruning.pruner.schedule.every) == expected
    assert_pruned(pruning.pruner)
    assert reached[expected.end - 1 :] == [reached[-1]] * (steps - expected.end + 1)
    assert all(r < reached[-1] for r in reached[: expected.end - 1])


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("bf16", [False, True])
def test_it_prunes_what_a_pruner_made_by_hand_prunes(bf16, accumulation, folder):
    options = {"bf16": bf16, "gradient_accumulation_steps": accumulation, "max_grad_norm": 0.5}
    pruning = Pruning(TARGET, begin=0.1, end=0.8, every=2, method="gmp", exclude=["classifier*"], seed=3)

    def optimizer_of(model):
        return torch.optim.AdamW(model.parameters(), lr=1e-2)

    model = bert()
    trainer = trainer_for(model, folder, [pruning], optimizers=(optimizer_of(model), None), **options)
    trainer.train()

    other = bert()
    optimizer = optimizer_of(other)
    begin, end, every = steps_of_shares(trainer.state.max_steps, 0.1, 0.8, 2)
    by_hand = fggp.Pruner(
        other, optimizer, TARGET, begin=begin, end=end, every=every, method="gmp", exclude=["classifier*"], seed=3
    )
    plain = trainer_for(other, folder, [], optimizers=(optimizer, None), **options)
    plain.train()
    assert identical(everything(trainer, pruning.pruner), everything(plain, by_hand))


def test_the_code_of_the_page(folder):
    model = bert()
    arguments = trainer_for(model, folder, []).args
    names = {"model": model, "arguments": arguments, "data": Examples()}
    exec(code("Transformers"), names)
    [pruning] = [c for c in names["trainer"].callback_handler.callbacks if isinstance(c, Pruning)]
    assert_pruned(pruning.pruner)


def test_any_module_can_be_trained(folder):
    pruning = Pruning(TARGET)
    trainer_for(Plain(), folder, [pruning]).train()
    assert list(pruning.pruner.masks) == ["layers.2.weight", "layers.4.weight"]
    assert_pruned(pruning.pruner)


def test_one_shot_methods_prune_when_training_begins(folder):
    pruning = Pruning(TARGET, method=fggp.StaticERK())
    trainer_for(Plain(), folder, [pruning]).train()
    assert (pruning.pruner.step, pruning.pruner.last_update) == (20, 0)
    assert_pruned(pruning.pruner)


def test_fused_experts_are_pruned(folder):
    pruning = Pruning(TARGET)
    trainer_for(mixtral(), folder, [pruning], data=Examples(causal=True)).train()
    model = pruning.pruner._model
    experts = {n for n, p in model.named_parameters() if p.ndim == 3}
    assert len(experts) == 4  # two in each layer
    assert experts <= pruning.pruner.masks.keys()
    assert_pruned(pruning.pruner)


def test_no_pruner_without_training(folder):
    model = bert()
    before = copy.deepcopy(model.state_dict())
    pruning = Pruning(TARGET)
    trainer = trainer_for(model, folder, [pruning])
    assert "sparsity" not in trainer.evaluate()
    trainer.predict(Examples())
    with pytest.raises(RuntimeError, match="made when the trainer starts to train"):
        pruning.pruner  # noqa: B018
    assert identical(before, model.state_dict())


def test_evaluations_are_no_steps(folder):
    pruning = Pruning(TARGET)
    trainer_for(bert(), folder, [pruning], eval_strategy="steps", eval_steps=1, eval_on_start=True).train()
    assert pruning.pruner.step == 20


@pytest.mark.parametrize(("method", "size"), [("fggp", 3), ("granet", 16)])
def test_a_smaller_batch_after_a_failure_makes_more_steps(method, size, folder):
    class TooLarge(Plain):
        def forward(self, input_ids, labels=None):
            if len(input_ids) > 2:
                raise RuntimeError("CUDA out of memory.")
            return super().forward(input_ids, labels)

    pruning = Pruning(TARGET, method=method)
    trainer_for(TooLarge(), folder, [pruning], auto_find_batch_size=True, per_device_train_batch_size=size).train()
    # The Trainer multiplies the batch size by 0.9 until one fits: 3, 2 or 16, 14, …, 2.
    assert pruning.pruner.step == 40
    assert pruning.pruner.schedule.end == 20
    assert_pruned(pruning.pruner)
    if method == "granet":
        assert pruning.pruner.method == fggp.GraNet(total_steps=40)


def test_steps_that_a_scaler_skips_are_made_up_for(folder):
    class Overflow(TrainerCallback):
        """Lets two steps be skipped, as a GradScaler does on a GPU: fused optimizers read this attribute."""

        def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
            optimizer.optimizer.found_inf = torch.tensor(float(state.global_step in (0, 3)))

    pruning = Pruning(TARGET, end=1.0, every=5, floor=1)
    trainer_for(bert(), folder, [pruning, Overflow()], optim="adamw_torch_fused").train()
    assert (pruning.pruner.step, pruning.pruner.schedule.end) == (18, 18)
    assert pruning.pruner.finished
    assert_pruned(pruning.pruner)


# Checkpoints

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


# The best model, and training that ends early


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


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


# What is left after training


@pytest.mark.parametrize("build", [bert, mixtral])
def test_from_pretrained_keeps_the_zeros(build, folder):
    pruning = Pruning(TARGET)
    trainer = trainer_for(build(), folder, [pruning], data=Examples(causal=build is mixtral))
    trainer.train()
    trainer.save_model(folder / "trainer")
    trainer.model.save_pretrained(folder / "model")
    for place in ("trainer", "model"):
        loaded = type(trainer.model).from_pretrained(folder / place)
        assert identical(dict(loaded.state_dict()), dict(trainer.model.state_dict()))
        weights = [loaded.get_parameter(name) for name in pruning.pruner.masks]
        assert zeros_of(weights) == pruning.pruner.sparsity


def test_the_sparsity_is_logged(folder):
    seen = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            seen.append(logs["sparsity"])

    pruning = Pruning(TARGET)
    trainer = trainer_for(bert(), folder, [pruning, Reporter()], logging_steps=1, eval_strategy="steps", eval_steps=5)
    trainer.train()
    assert seen == [log["sparsity"] for log in trainer.state.log_history]
    losses = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["step"] for log in losses] == list(range(1, 21))
    # At step t of the first half the schedule has 1 − (1 − t/10)³ of the target.
    total = sum(m.numel() for m in pruning.pruner.masks.values())
    for log in losses:
        share = TARGET * (1 - max(0, 1 - log["step"] / 10) ** 3)
        assert log["sparsity"] == 1 - round((1 - share) * total) / total


# More than one training


def test_a_second_training_holds_the_zeros(folder):
    pruning = Pruning(TARGET)
    trainer = trainer_for(bert(), folder, [pruning])
    trainer.train()
    masks = copy.deepcopy(dict(pruning.pruner.masks))
    trainer.train()
    assert identical(masks, dict(pruning.pruner.masks))
    assert_pruned(pruning.pruner)


def test_a_second_trainer_holds_the_zeros(folder):
    pruning, model = Pruning(TARGET), bert()
    trainer_for(model, folder, [pruning]).train()
    masks = copy.deepcopy(dict(pruning.pruner.masks))
    trainer_for(model, folder, [pruning], optim="sgd").train()
    assert identical(masks, dict(pruning.pruner.masks))
    assert_pruned(pruning.pruner)


def test_a_second_training_reaches_the_target_that_the_first_missed(folder):
    pruning, model, stop = Pruning(TARGET), bert(), Stop(6)
    trainer = trainer_for(model, folder, [pruning, stop])
    with pytest.warns(UserWarning, match="pruning has not ended"):
        trainer.train()
    pruner, reached = pruning.pruner, pruning.pruner.sparsity
    trainer.remove_callback(stop)
    trainer.train()
    assert pruning.pruner is pruner
    assert reached < pruner.sparsity
    assert (pruner.step, pruner.schedule.end) == (26, 10)
    assert_pruned(pruner)


def test_each_new_model_gets_a_pruner(folder):
    pruning = Pruning(TARGET, floor=1)
    trainer = trainer_for(None, folder, [pruning], max_steps=6, model_init=lambda: bert())
    pruners = []
    for _ in range(2):
        trainer.train()
        pruners.append(pruning.pruner)
        assert_pruned(pruning.pruner)
    assert pruners[0] is not pruners[1]
    assert identical(dict(pruners[0].masks), dict(pruners[1].masks))


# Refused


def test_two_callbacks_are_refused(folder):
    trainer = trainer_for(bert(), folder, [Pruning(TARGET), Pruning(0.5, include=["classifier*"])])
    with pytest.raises(ValueError, match="several Pruning callbacks: give it one"):
        trainer.train()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"end": 1000}, ValueError, r"end=1000 must lie in \[0, 1\]: it is a share of training"),
        ({"begin": 0.5}, ValueError, r"end=0\.5 must be greater than begin=0\.5"),
        ({"every": 0}, ValueError, r"every=0 must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, error, words):
    with pytest.raises(error, match=words):
        Pruning(TARGET, **arguments)


def test_wrong_arguments_of_the_pruner_are_refused_when_training_begins(folder):
    with pytest.raises(ValueError, match=r"sparsity=90 must lie in"):
        trainer_for(bert(), folder, [Pruning(90)]).train()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")
def test_sharded_weights_cannot_be_written_to_checkpoints(folder):
    from torch.distributed.tensor import distribute_tensor, init_device_mesh

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = nn.Linear(4, 4)
        model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = trainer_for(bert(), folder, [pruning := Pruning(TARGET)], save_strategy="steps")
        with pytest.raises(ValueError, match=r"save_strategy=\"steps\" must be 'no' with sharded weights"):
            pruning.on_train_begin(trainer.args, trainer.state, trainer.control, model=model, optimizer=optimizer)
    finally:
        torch.distributed.destroy_process_group()
