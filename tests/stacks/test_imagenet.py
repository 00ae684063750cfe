"""What PyTorch's examples/imagenet/main.py does with a model, with the lines of docs/stacks.md."""

import argparse
import shutil

import pytest
import torch

import fggp  # noqa: F401 (the page's lines use it)
import helpers
from helpers import identical
from page import added_lines

BATCHES, EPOCHS, TARGET = 4, 6, 0.9


def run_script(folder, accuracies, resume=None, stop=EPOCHS):
    """main_worker(), as far as it touches model, optimizer and checkpoints, and the lines that the page adds.

    Args:
        folder: where the checkpoints are written.
        accuracies: of each epoch.
        resume: the checkpoint to go on from.
        stop: the epoch at which the run is interrupted.
    """
    imported, making, weighing, saving = added_lines("PyTorch's ImageNet example")
    folder.mkdir(exist_ok=True)
    args = argparse.Namespace(resume=resume, epochs=EPOCHS, start_epoch=0)
    best_acc1 = 0
    model = helpers.convnet()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.1)
    if args.resume:
        checkpoint = torch.load(args.resume)
        args.start_epoch = checkpoint["epoch"]
        best_acc1 = checkpoint["best_acc1"].to("cpu")  # the script calls a method of a tensor here
        model.load_state_dict(checkpoint["state_dict"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])
    train_loader = range(BATCHES)
    names = {**globals(), **locals()}
    exec(imported + making, names)

    for epoch in range(args.start_epoch, stop):
        helpers.train(model, optimizer, range(epoch * BATCHES + 1, (epoch + 1) * BATCHES + 1))
        names["acc1"] = torch.tensor(accuracies[epoch])
        scheduler.step()
        exec(weighing, names)
        acc1 = names["acc1"]
        is_best = acc1 > best_acc1
        best_acc1 = max(acc1, best_acc1)
        state = {
            "epoch": epoch + 1,
            "state_dict": model.state_dict(),
            "best_acc1": best_acc1,
            "optimizer": optimizer.state_dict(),
            **eval(f"{{{saving}}}", names | {"scheduler": scheduler}),
        }
        torch.save(state, folder / "checkpoint.pth.tar")
        if is_best:
            shutil.copyfile(folder / "checkpoint.pth.tar", folder / "model_best.pth.tar")
    return names["pruner"], model, optimizer


def zeros(path, pruner):
    """The number of zeros among the prunable weights of a checkpoint."""
    state = torch.load(path)["state_dict"]
    return sum(int((state[name] == 0).sum()) for name in pruner.masks)


ACCURACIES = [9.0, 8.0, 1.0, 3.0, 2.0, 1.0]


def test_last_and_best_are_at_the_target(tmp_path):
    pruner, _, optimizer = run_script(tmp_path, ACCURACIES)
    assert (pruner.step, pruner.schedule.end) == (EPOCHS * BATCHES, EPOCHS * BATCHES // 2)
    helpers.assert_exactly_zero(pruner, optimizer)
    total = sum(helpers.CONVNET_WEIGHTS.values())
    exact = total - round((1 - TARGET) * total)
    assert zeros(tmp_path / "checkpoint.pth.tar", pruner) == exact
    assert zeros(tmp_path / "model_best.pth.tar", pruner) == exact
    best = torch.load(tmp_path / "model_best.pth.tar")
    assert (best["epoch"], float(best["best_acc1"])) == (4, 3.0)  # not epoch 1, whose accuracy is higher


@pytest.mark.parametrize("stop", [1, 2, 4])  # before the target, when it is nearly reached, and after it
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(stop, tmp_path):
    expected = run_script(tmp_path / "unbroken", ACCURACIES)
    run_script(tmp_path / "killed", ACCURACIES, stop=stop)
    resumed = run_script(tmp_path / "resumed", ACCURACIES, resume=tmp_path / "killed" / "checkpoint.pth.tar")
    for one, other in zip(expected, resumed, strict=True):
        assert identical(one.state_dict(), other.state_dict())
    assert identical(dict(expected[0].masks), dict(resumed[0].masks))


def test_without_the_target_no_model_is_the_best(tmp_path):
    pruner, _, _ = run_script(tmp_path, ACCURACIES, stop=2)
    assert not pruner.finished
    assert not (tmp_path / "model_best.pth.tar").exists()
