import pytest
import safetensors.torch
import torch

from fggp.lab.errors import UsageError
from fggp.lab.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "one")
    folder.begin({"lr": 0.1, "seed": 0})
    return folder


def test_metrics_after_the_checkpoint_are_dropped(folder):
    folder.log({"kind": "epoch", "epoch": 1})
    folder.save_checkpoint({"epochs": 1})
    folder.log({"kind": "update", "step": 12})
    with folder.metrics_file.open("a") as file:
        file.write('{"kind": "upd')  # a line cut short by the kill
    assert folder.load_checkpoint()["epochs"] == 1
    assert folder.metrics("epoch") == [{"kind": "epoch", "epoch": 1}]
    assert folder.metrics("update") == []


def test_without_a_checkpoint_all_metrics_are_dropped(folder):
    folder.log({"kind": "update", "step": 12})
    assert folder.load_checkpoint() is None
    assert folder.metrics_file.read_text() == ""


def test_what_a_kill_left_half_written_goes_when_the_run_goes_on(folder):
    folder.log({"kind": "epoch", "epoch": 1})
    folder.save_checkpoint({"epochs": 1})
    files = set(folder.path.iterdir())
    (folder.path / "checkpoint.pt.0a1b2c3d.partial").write_bytes(b"half of a ch")
    assert folder.load_checkpoint()["epochs"] == 1
    assert set(folder.path.iterdir()) == files


def test_other_settings_are_named(folder):
    folder.check_settings({"lr": 0.1, "seed": 0})
    with pytest.raises(UsageError, match=r"lr is 0\.2, the run's is 0\.1; seed is 1, the run's is 0$"):
        folder.check_settings({"lr": 0.2, "seed": 1})


def test_model_file_takes_tied_and_channels_last_weights(folder):
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    folder.save_model({"one": weight, "two": weight})
    loaded = safetensors.torch.load_file(folder.model_file)
    assert torch.equal(loaded["one"], weight)
    assert torch.equal(loaded["two"], weight)
