"""A Pruner beside Accelerate: made before or after ``prepare``, in its checkpoints, in two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fggp
import helpers
from helpers import identical
from page import code

accelerate = pytest.importorskip("accelerate")

from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402
from accelerate.utils import ProjectConfiguration, set_seed  # noqa: E402

HERE = Path(__file__).parent
TARGET, STEPS = 0.8, 8


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerate keeps its settings for the whole process."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def batches(count, size=4):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count * size, 6, generator=generator)
    y = torch.randint(3, (count * size,), generator=generator)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=size)


def pruner_for(model, optimizer, end=STEPS // 2, **options):
    return fggp.Pruner(model, optimizer, TARGET, begin=0, end=end, every=1, **options)


def train(accelerator, model, optimizer, loader):
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("when", ["before prepare", "after prepare", "after prepare, wrapper given"])
def test_it_prunes_what_it_prunes_without_accelerate(when, accumulation, mixed_precision):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation, mixed_precision=mixed_precision)
    model = helpers.mlp()
    optimizer = adam(model)
    if when == "before prepare":
        pruner = pruner_for(model, optimizer)
    prepared, wrapper, loader = accelerator.prepare(model, optimizer, batches(STEPS * accumulation))
    if when != "before prepare":
        pruner = pruner_for(prepared, wrapper if "wrapper" in when else optimizer)
    train(accelerator, prepared, wrapper, loader)

    # The same by hand.
    other = helpers.mlp()
    other_optimizer = adam(other)
    by_hand = pruner_for(other, other_optimizer)
    for i, (x, y) in enumerate(batches(STEPS * accumulation)):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(other(x).float(), y)
        (loss / accumulation).backward()
        if (i + 1) % accumulation == 0:
            torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
            other_optimizer.step()
            other_optimizer.zero_grad()

    assert (pruner.step, pruner.last_update) == (STEPS, STEPS // 2)
    assert pruner.finished
    helpers.assert_exactly_zero(pruner, optimizer)
    assert identical(dict(pruner.masks), dict(by_hand.masks))
    assert identical(dict(model.state_dict()), dict(other.state_dict()))
    assert identical(optimizer.state_dict(), other_optimizer.state_dict())


def test_the_code_of_the_page():
    model = helpers.mlp()
    names = {
        "fggp": fggp,
        "model": model,
        "optimizer": adam(model),
        "loader": batches(24),
        "loss_fn": torch.nn.functional.cross_entropy,
    }
    exec(code("Accelerate"), names)
    assert (names["pruner"].step, names["pruner"].finished) == (12, True)
    helpers.assert_exactly_zero(names["pruner"], names["optimizer"])


@pytest.mark.parametrize("options", [{}, {"method": "rigl"}], ids=["fggp", "rigl"])
@pytest.mark.parametrize("stop", [2, 6], ids=["before the target", "after it"])
def test_states_that_accelerate_saves_go_on(stop, options, tmp_path):
    def make():
        set_seed(0)
        accelerator = Accelerator(cpu=True, project_config=ProjectConfiguration(str(tmp_path)))
        model, optimizer, loader = accelerator.prepare(*(model := helpers.mlp(), adam(model)), batches(STEPS))
        pruner = pruner_for(model, optimizer, **options)
        accelerator.register_for_checkpointing(pruner)
        return accelerator, model, optimizer, loader, pruner

    accelerator, model, optimizer, loader, pruner = make()
    train(accelerator, model, optimizer, list(loader)[:stop])
    accelerator.save_state(tmp_path / "saved")
    train(accelerator, model, optimizer, list(loader)[stop:])
    expected = [model.state_dict(), optimizer.state_dict(), pruner.state_dict(), dict(pruner.masks)]

    fresh = make()
    fresh[0].load_state(tmp_path / "saved")
    accelerator, model, optimizer, loader, pruner = fresh
    assert pruner.step == stop
    helpers.assert_exactly_zero(pruner, optimizer)
    train(accelerator, model, optimizer, list(loader)[stop:])
    assert identical(expected, [model.state_dict(), optimizer.state_dict(), pruner.state_dict(), dict(pruner.masks)])


def test_a_state_without_the_pruner_is_not_trained_on(tmp_path):
    """The pruner was not registered: weights of an earlier step come back, and its masks do not."""
    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(*(model := helpers.mlp(), adam(model)), batches(STEPS))
    pruner = pruner_for(model, optimizer)
    data = list(loader)
    accelerator.save_state(tmp_path / "saved")
    train(accelerator, model, optimizer, data[:5])
    accelerator.load_state(tmp_path / "saved")
    with pytest.raises(RuntimeError, match="load_state_dict"):
        train(accelerator, model, optimizer, data[5:])
    pruner.zero()
    train(accelerator, model, optimizer, data[5:])
    helpers.assert_exactly_zero(pruner, optimizer)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")
def test_two_processes_prune_the_same(tmp_path):
    """Accelerate alone, and the Trainer of Transformers: see two_processes.py."""
    pytest.importorskip("transformers")
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, HERE / "two_processes.py", str(rank), tmp_path],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
