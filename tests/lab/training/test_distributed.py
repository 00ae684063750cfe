"""Several ranks: they train the network that one would, can be killed and resumed, and make one line of an error."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import ranks
from fggp.lab.base.errors import UsageError
from fggp.lab.training import models, trainer
from fggp.lab.training.distributed import ALONE, World, launched
from fggp.lab.training.parallel import called_modules, units
from fggp.lab.training.run_folder import RunFolder
from fggp.lab.training.settings import TrainSettings
from fggp.lab.training.step import EagerStep
from fggp.lab.training.train import train

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch has no gloo"
)

KINDS = ("ddp", "fsdp")
TIMES = {"images_per_second", "wall_seconds", "date", "commit", "run"}  # someone may commit while a test runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """What ranks.py leaves."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run([sys.executable, ranks.__file__, str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory) -> Path:
    """A run folder made by torchrun itself."""
    out = tmp_path_factory.mktemp("torchrun") / "run"
    started = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([sys.executable, *started, "-m", "fggp", *ranks.COMMAND, "--out", str(out)], check=True)
    return out


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return value


def metrics(folder: Path) -> list[dict]:
    return [without_times(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def record(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text())


def checkpoint(folder: Path) -> dict:
    return RunFolder(folder).load_checkpoint()


def shape_of(value):
    """What a checkpoint is made of, without the numbers."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()}
    return (value.dtype, value.shape) if isinstance(value, torch.Tensor) else type(value)


def test_under_torchrun_it_is_a_run_like_any_other(torchrun):
    files = {file.name for file in torchrun.iterdir()}
    assert {"settings.json", "metrics.jsonl", "checkpoint.pt", "model.safetensors", "record.json"} <= files
    assert {"accuracy.png", "sparsity.png", "density.png"} <= files
    made = record(torchrun)
    assert (made["ranks"], made["parallel"], made["execution"]) == (2, "ddp", "eager")
    assert made["curve"]["ranks"] == [2, 2]
    assert "fsdp" not in made["settings"]
    state = safetensors.torch.load_file(torchrun / "model.safetensors")
    models.create("digits-cnn", 10, 1).load_state_dict(state)
    prunable = [weight for weight in state.values() if weight.ndim > 1]
    zeros = sum(int((weight == 0).sum()) for weight in prunable)
    total = sum(weight.numel() for weight in prunable)
    assert zeros == total - round((1 - 0.9) * total)
    assert made["sparsity"] == zeros / total


@pytest.mark.filterwarnings("ignore:'unused.weight' had no gradient")
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_with_uneven_parts_take_the_steps_of_one(runs, kind, monkeypatch):
    found = torch.load(runs / f"{kind}.steps", weights_only=True)
    monkeypatch.setitem(models.OURS, "plain", ranks.Plain)
    monkeypatch.setattr(trainer, "TEST_BATCH", ranks.SMALL)
    whole = ranks.trained(ALONE)
    assert found["accuracy"] == whole["accuracy"]
    for found_epoch, whole_epoch in zip(found["tallies"], whole["tallies"], strict=True):
        assert found_epoch == pytest.approx(whole_epoch)
        assert found_epoch[2] == 15
    for part in ("model", "optimizer"):
        torch.testing.assert_close(found["state"][part], whole["state"][part], rtol=1e-4, atol=1e-6)
    assert shape_of(found["state"]) == shape_of(whole["state"])


@pytest.mark.parametrize("kind", KINDS)
def test_running_statistics_are_means_over_ranks_and_other_buffers_the_first_ones(runs, kind):
    for rank in range(2):
        norm = torch.load(runs / f"{kind}.steps.norm.{rank}", weights_only=True)
        assert norm["running_mean"].tolist() == [0.5, 0.5]
        assert norm["running_var"].tolist() == [3.5, 3.5]
        assert norm["own"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("run", ["ddp", "ddp-resumed", "ddp-elsewhere", "fsdp", "fsdp-resumed", "fsdp-elsewhere"])
def test_all_ranks_end_with_the_masks_and_buffers_of_the_file(runs, run):
    state = safetensors.torch.load_file(runs / run / "model.safetensors")
    for rank in range(record(runs / run)["ranks"]):
        ends = torch.load(f"{runs / run}.end.{rank}", weights_only=True)
        masks = {name: value for name, value in ends.items() if value.dtype == torch.bool}
        assert len(masks) == 4
        assert sum(int(mask.sum()) for mask in masks.values()) == round(0.1 * sum(m.numel() for m in masks.values()))
        for name, value in ends.items():
            assert torch.equal(state[name] != 0 if name in masks else state[name], value)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_equals_unbroken(runs, kind):
    codes = torch.load(runs / "codes", weights_only=True)
    assert codes[f"{kind}-killed"][1] == -9
    assert {*codes[f"{kind}-killed"]} == {1, -9}, "the other ranks noticed"
    assert not (runs / f"{kind}-killed" / "record.json").exists()
    killed, resumed = runs / kind, runs / f"{kind}-resumed"
    assert (killed / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    assert metrics(killed) == metrics(resumed)
    records = [without_times(record(folder)) for folder in (killed, resumed)]
    assert records[0] == records[1]


def test_started_again_by_torchrun_equals_unbroken(runs):
    assert torch.load(runs / "codes", weights_only=True)["restarted"] == [0, 0]
    files = [runs / run / "model.safetensors" for run in ("fsdp", "restarted")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "continuing after epoch 1 of 2" in (runs / "restarted.log").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_that_loses_another_says_so_in_a_line(runs, kind):
    text = (runs / f"{kind}-killed.log").read_text()
    assert "Traceback" not in text
    said = [line for line in text.splitlines() if line.startswith(("epoch", "fggp:"))]  # libraries may warn in between
    assert [line.partition(" ")[0] for line in said] == ["epoch", "fggp:"]
    assert said[1].endswith("; the same command with --resume continues")


@pytest.mark.parametrize(("kind", "other"), [("ddp", "fsdp"), ("fsdp", "ddp")])
def test_resumed_in_the_other_way(runs, kind, other):
    made = record(runs / f"{kind}-elsewhere")
    assert (made["ranks"], made["parallel"]) == (2, other)
    assert made["curve"]["ranks"] == [3 if kind == "ddp" else 2, 2]
    assert made["sparsity"] == pytest.approx(0.9, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_on_one_rank(runs, kind, tmp_path, console):
    shutil.copytree(runs / f"{kind}-killed", tmp_path / "run")
    settings = TrainSettings(epochs=2, prune_end=2, sparsity=0.9, device="cpu", out=tmp_path / "run", resume=True)
    made = train(settings, console)
    assert (made["ranks"], made["parallel"], made["curve"]["ranks"][1]) == (1, "single", 1)
    assert made["sparsity"] == pytest.approx(0.9, abs=1e-4)
    assert shape_of(checkpoint(tmp_path / "run")) == shape_of(checkpoint(runs / kind))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("value", "sparsity is 2.0; it must be in [0, 1)"),
        ("model", "model 'vgg19' cannot take images of 1×8×8"),
        ("batches", "batch_size is 1, which makes batches of 1 of the 1294 training images; each of the 2 ranks"),
        ("command", "start this one without torchrun"),
        ("second", "lr is 0.3 for rank 1; it must be 0.1, as for rank 0"),
        ("taken", "already holds a run; add --resume"),
    ],
)
def test_a_mistake_ends_all_ranks_and_is_one_line(runs, run, message):
    text = Path(f"{runs / run}.log").read_text()
    assert text.startswith("fggp: ")
    assert text.count("\n") == 1
    assert message in text
    codes = torch.load(runs / "codes", weights_only=True)[run]
    assert 2 in codes
    assert 0 not in codes


def test_a_command_line_that_cannot_be_read_is_said_once(runs):
    assert torch.load(runs / "codes", weights_only=True)["option"] == [2, 2]
    assert (runs / "option.log").read_text().count("--epcohs") == 1


def test_fsdp_needs_torchrun(monkeypatch):
    with pytest.raises(UsageError, match="fsdp is True; it must be left out, or the command started as torchrun"):
        TrainSettings(fsdp=True).resolve()
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        assert not launched()
        monkeypatch.setenv(name, "1")
    settings = TrainSettings(fsdp=True, device="cpu").resolve()
    assert settings.as_json() == TrainSettings(device="cpu").resolve().as_json()
    with pytest.raises(UsageError, match="fsdp is True; it must be left out for method 'snip'"):
        TrainSettings(fsdp=True, method="snip", device="cpu").resolve()


def test_every_rank_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    first = World(0, 4, 1, torch.distributed.HashStore())
    assert first.device("cuda") == torch.device("cuda:1")
    assert first.device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"device is 'cuda:1'; under torchrun it must be cpu, or cuda"):
        first.device("cuda:1")
    with pytest.raises(UsageError, match=r"no GPU for rank 0: start at most 2 on its machine"):
        World(0, 4, 2, torch.distributed.HashStore()).device("cuda")
    assert World().device("cuda:1") == torch.device("cuda:1")


class Attentive(nn.Module):
    """Attention reads its output projection's weight without calling it, a list is never called."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(12))

    def forward(self, x):
        x = self.attention(x, x, x)[0]
        for layer in self.layers:
            x = layer(x)
        return x


def test_what_is_gathered_together_is_called_and_of_middling_size():
    model = Attentive()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    called = called_modules(model, lambda model: model(torch.randn(3, 1, 16)))
    assert called == {model, model.attention, *model.layers}
    assert units(model, called) == [model.attention, *model.layers]
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    network = models.create("resnet50", 10)
    chosen = units(network, {*network.modules()})
    sizes = [sum(p.numel() for p in unit.parameters()) for unit in chosen]
    total = sum(p.numel() for p in network.parameters())
    assert all(total / 64 <= size <= total / 8 for size in sizes)
    assert total / 2 < sum(sizes) <= total
    inside = [module for unit in chosen for module in unit.modules()]
    assert len(inside) == len({*inside})


def test_a_weighted_step_weights_gradients_and_not_what_it_returns():
    model = nn.Linear(3, 2)
    compute = EagerStep(model, lambda x, y: (nn.functional.cross_entropy(model(x), y), y.sum()))
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    loss, _ = compute(x, y)
    gradient = model.weight.grad.clone()
    weighted, _ = compute(x, y, 0.5)
    assert torch.equal(weighted, loss)
    assert torch.equal(model.weight.grad, gradient / 2)
