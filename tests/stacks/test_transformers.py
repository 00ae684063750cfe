"""`fggp.transformers.Pruning` in the real Trainer, on a CPU."""

import copy

import pytest
import torch
from torch import nn

import fggp
from helpers import identical
from page import code

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import TrainerCallback

from fggp.training_shares import steps_of_shares
from fggp.transformers import Pruning
from transformers_runs import (
    TARGET,
    Examples,
    Plain,
    Stop,
    assert_pruned,
    bert,
    everything,
    mixtral,
    trainer_for,
    zeros_of,
)

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
