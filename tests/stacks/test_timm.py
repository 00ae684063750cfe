"""timm: its optimizers, and what its train.py does with a model, with the lines of docs/stacks.md."""

import argparse
from pathlib import Path

import pytest
import torch

import helpers
from helpers import identical
from page import added_lines

timm = pytest.importorskip("timm")
pytest.importorskip("timm.task")

from timm import utils  # noqa: E402
from timm.models import resume_checkpoint  # noqa: E402
from timm.optim import create_optimizer_v2, list_optimizers  # noqa: E402
from timm.scheduler import create_scheduler_v2  # noqa: E402
from timm.task import ClassificationTask, load_task_ema_checkpoint, resume_task_checkpoint  # noqa: E402
from timm.utils import ModelEmaV3  # noqa: E402

BATCHES, EPOCHS, TARGET = 4, 6, 0.9


def zeros(state, pruner):
    """The number of zeros among the prunable weights of a saved model."""
    return sum(int((state[name] == 0).sum()) for name in pruner.masks)


def run_script(folder, metrics, resume="", stop=EPOCHS, optimizer_name="adamw", decreasing=False):
    """train.py's main(), as far as it touches model, optimizer and checkpoints, and the lines that the page adds.

    Args:
        folder: of the checkpoints.
        metrics: of each epoch.
        resume: the checkpoint to go on from.
        stop: the epoch at which the run is interrupted.
        optimizer_name: the name of timm's optimizer.
        decreasing: whether lower metrics are better.
    """
    imported, making, saving = added_lines("timm")
    args = argparse.Namespace(resume=str(resume), model="convnet")
    task = ClassificationTask(helpers.convnet(), torch.nn.CrossEntropyLoss(), verbose=False)
    model = task.get_trainable_module()
    optimizer = create_optimizer_v2(model, opt=optimizer_name, lr=0.01, weight_decay=0.02)
    start = 0
    if args.resume:
        start = resume_task_checkpoint(task, args.resume, optimizer=optimizer, log_info=False)
    task.setup_ema(decay=0.9)
    if args.resume:
        load_task_ema_checkpoint(task, args.resume)
    Path(folder).mkdir(exist_ok=True)
    saver = utils.CheckpointSaver(
        model=model, optimizer=optimizer, args=args, task=task, checkpoint_dir=str(folder), recovery_dir=str(folder),
        decreasing=decreasing, max_history=2,
    )  # fmt: skip
    updates_per_epoch = BATCHES
    lr_scheduler, num_epochs = create_scheduler_v2(
        optimizer, num_epochs=EPOCHS, updates_per_epoch=updates_per_epoch, warmup_epochs=0
    )
    if start:
        lr_scheduler.step(start)
    names = {**globals(), **locals()}
    exec(imported + making, names)
    pruner = names["pruner"]

    num_updates = start * updates_per_epoch
    for epoch in range(start, stop):
        model.train()
        for _ in range(updates_per_epoch):
            num_updates += 1
            helpers.loss_of(model, num_updates).backward()
            optimizer.step()
            optimizer.zero_grad()
            task.update_ema(step=num_updates)
        exec(saving, names | {"epoch": epoch, "latest_metric": metrics[epoch]})
        lr_scheduler.step(epoch + 1, metrics[epoch])
    return pruner, task, optimizer


def load(path):
    return utils.load_checkpoint_metadata(str(path))


@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd", "muon"])
def test_model_average_and_best_end_at_the_target(optimizer_name, tmp_path):
    pruner, task, _ = run_script(tmp_path, [9, 8, 1, 3, 2, 1], optimizer_name=optimizer_name)
    assert pruner.step == EPOCHS * BATCHES
    assert pruner.schedule.end == EPOCHS * BATCHES // 2
    total = sum(helpers.CONVNET_WEIGHTS.values())
    exact = total - round((1 - TARGET) * total)
    last, best = load(tmp_path / "last.pth.tar"), load(tmp_path / "model_best.pth.tar")
    assert (last["epoch"], best["epoch"]) == (5, 3)  # not epoch 0, whose metric is higher
    for checkpoint in (last, best):
        for state in (checkpoint["state_dict"], checkpoint["state_dict_ema"]):
            assert zeros(state, pruner) == exact
    average = task.get_trainable_module(ema=True).module
    for name, mask in pruner.masks.items():
        assert not average.get_parameter(name)[~mask].any()
        assert average.get_parameter(name)[mask].all()
    assert pruner.check() == []


def test_lower_metrics_may_be_better(tmp_path):
    run_script(tmp_path, [0.1, 0.2, 0.5, 0.3, 0.4, 0.6], decreasing=True)
    assert load(tmp_path / "model_best.pth.tar")["epoch"] == 3


@pytest.mark.parametrize("stop", [1, 2, 4])  # before the target, when it is nearly reached, and after it
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(stop, tmp_path):
    metrics = [9, 8, 1, 3, 2, 1]
    expected = run_script(tmp_path / "unbroken", metrics)
    run_script(tmp_path / "killed", metrics, stop=stop)
    resumed = run_script(tmp_path / "resumed", metrics, resume=tmp_path / "killed" / "last.pth.tar")
    for one, other in zip(expected, resumed, strict=True):
        assert identical(one.state_dict(), other.state_dict())
    assert identical(dict(expected[0].masks), dict(resumed[0].masks))
    last = [load(tmp_path / run / "last.pth.tar") for run in ("unbroken", "resumed")]
    assert identical(dict(last[0]["state_dict_ema"]), dict(last[1]["state_dict_ema"]))


def test_without_the_target_no_model_is_the_best(tmp_path):
    pruner, _, _ = run_script(tmp_path, [9, 8], stop=2)
    assert not pruner.finished
    assert (tmp_path / "last.pth.tar").exists()
    assert not (tmp_path / "model_best.pth.tar").exists()


@pytest.mark.parametrize("options", [{}, {"foreach": False}, {"dtype": torch.bfloat16}, {"use_warmup": True}])
def test_averages_of_its_own_class_keep_the_zeros(options, tmp_path):
    """Scripts without tasks: ModelEmaV3 beside the model, and resume_checkpoint."""
    model = helpers.convnet()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, momentum=0.9)
    average = ModelEmaV3(model, decay=0.9, **options)
    pruner = helpers.make_pruner(model, optimizer)
    pruner.follow(average)
    saver = utils.CheckpointSaver(model, optimizer, model_ema=average, checkpoint_dir=str(tmp_path))
    for step in range(1, 9):
        helpers.train(model, optimizer, range(step, step + 1))
        average.update(model, step=step)
        for name, mask in pruner.masks.items():
            assert not average.module.get_parameter(name)[~mask].any(), step
    saver.save_checkpoint(0, metric=1.0)
    assert zeros(load(tmp_path / "last.pth.tar")["state_dict_ema"], pruner) == 436 - round((1 - 0.8) * 436)

    other = helpers.convnet(seed=1)
    other_optimizer = create_optimizer_v2(other, opt="sgd", lr=0.1, momentum=0.9)
    second = helpers.make_pruner(other, other_optimizer)
    assert resume_checkpoint(other, str(tmp_path / "last.pth.tar"), other_optimizer, log_info=False) == 1
    second.load_state_dict(pruner.state_dict())
    helpers.assert_exactly_zero(second, other_optimizer)
    assert identical(dict(model.state_dict()), dict(other.state_dict()))


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph", "ignore:It is highly recommended")
@pytest.mark.parametrize("name", [n for n in list_optimizers() if not n.startswith(("bnb", "fused"))])
@torch.compiler.set_stance("force_eager")  # kron compiles itself
def test_every_optimizer(name):
    model = helpers.convnet()
    optimizer = create_optimizer_v2(model, opt=name, lr=1e-3, weight_decay=0.01)
    pruner = helpers.make_pruner(model, optimizer, end=4)
    for step in range(1, 7):
        loss = helpers.loss_of(model, step)
        optimizer.zero_grad()
        loss.backward(create_graph=getattr(optimizer, "is_second_order", False))
        optimizer.step()
        for weight, mask in zip(helpers.pruned_parameters(pruner).values(), pruner.masks.values(), strict=True):
            assert not weight[~mask].any(), step
    assert pruner.step == 6
    assert pruner.finished
    assert round((1 - 0.8) * 436) == sum(int(m.sum()) for m in pruner.masks.values())
