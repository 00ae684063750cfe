import errno
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fggp.lab.base.errors import UsageError
from fggp.lab.training.checkpoint import Checkpoint
from fggp.lab.training.run_folder import RunFolder


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


# Damaged files

SETTINGS = {"lr": 0.1, "seed": 0}
DAMAGES = {"cut": lambda file: file.write_bytes(file.read_bytes()[:9]), "deleted": Path.unlink}


def ran(folder: RunFolder, epochs: int) -> RunFolder:
    for epoch in range(1, epochs + 1):
        folder.log({"kind": "update", "step": epoch})
        folder.log({"kind": "epoch", "epoch": epoch})
        folder.save_checkpoint({"epochs": epoch})
    return RunFolder(folder.path)


def flip(file: Path, old: bytes, new: bytes) -> None:
    assert old in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(old, new))


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(folder, capsys):
    folder = ran(folder, 3)
    folder.log({"kind": "update", "step": 4})
    folder.checkpoint_file.write_bytes(b"")
    assert folder.load_checkpoint() == {"epochs": 2}
    assert [line["epoch"] for line in folder.metrics("epoch")] == [1, 2]
    assert [line["step"] for line in folder.metrics("update")] == [1, 2]
    assert capsys.readouterr().err == (
        f"fggp: {folder.checkpoint_file} is damaged: it is empty (it is now checkpoint.damaged.pt); continuing from "
        "the checkpoint before it, checkpoint.previous.pt\n"
    )
    # A kill right now changes nothing.
    assert RunFolder(folder.path).load_checkpoint() == {"epochs": 2}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_metrics_are_restored(folder, damage, capsys):
    folder = ran(folder, 3)
    before = folder.metrics_file.read_bytes()
    damage(folder.metrics_file)
    assert folder.load_checkpoint() == {"epochs": 3}
    assert folder.metrics_file.read_bytes() == before
    assert f"{folder.metrics_file} is damaged or missing" in capsys.readouterr().err


def test_a_flipped_digit_in_the_metrics_is_put_right(folder, capsys):
    folder = ran(folder, 3)
    before = folder.metrics_file.read_bytes()
    flip(folder.metrics_file, b'"epoch": 2', b'"epoch": 6')
    folder.log({"kind": "update", "step": 4})
    assert folder.load_checkpoint() == {"epochs": 3}
    assert folder.metrics_file.read_bytes() == before
    assert "is damaged" in capsys.readouterr().err


def test_nothing_is_said_of_a_run_that_is_whole(folder, capsys):
    folder = ran(folder, 3)
    folder.check_settings(SETTINGS)
    folder.load_checkpoint()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("finished", [False, True])
def test_damaged_settings_are_restored(folder, damage, finished, capsys):
    folder = ran(folder, 2)
    if finished:
        folder.finish({"settings": SETTINGS})
        folder.checkpoint_file.unlink()  # as a grid does
    before = folder.settings_file.read_bytes()
    damage(folder.settings_file)
    assert folder.holds_run()
    with pytest.raises(UsageError, match=r"lr is 0\.2, the run's is 0\.1"):
        folder.check_settings({**SETTINGS, "lr": 0.2})
    folder.check_settings(SETTINGS)
    assert folder.settings_file.read_bytes() == before
    assert f"{folder.settings_file} is damaged or missing" in capsys.readouterr().err


def test_a_flipped_digit_in_the_settings_is_put_right(folder):
    folder = ran(folder, 2)
    flip(folder.settings_file, b"0.1", b"0.3")
    folder.check_settings(SETTINGS)
    assert json.loads(folder.settings_file.read_text()) == SETTINGS


def test_settings_of_which_nothing_is_left_are_those_given(folder):
    folder.settings_file.write_bytes(b"{")
    folder.check_settings({"lr": 0.2, "seed": 0})
    assert json.loads(folder.settings_file.read_text()) == {"lr": 0.2, "seed": 0}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b'"text"'])
def test_a_damaged_record_is_written_again(folder, content, capsys):
    folder = ran(folder, 2)
    folder.finish({"settings": SETTINGS})
    folder.record_file.write_bytes(content)
    assert folder.record() is None
    assert f"{folder.record_file} is damaged" in capsys.readouterr().err
    assert folder.load_checkpoint() == {"epochs": 2}


def test_checkpoints_that_are_gone_are_made_again(folder, capsys):
    folder = ran(folder, 2)
    folder.checkpoint_file.unlink()
    folder.checkpoints.previous.unlink()
    assert folder.load_checkpoint() is None
    assert folder.metrics_file.read_bytes() == b""
    told = capsys.readouterr().err
    assert f"{folder.checkpoint_file} is missing, and so is the one before it: 2 epochs are repeated" in told


def test_beginning_drops_what_is_left_of_another_run(folder):
    folder.log({"kind": "epoch", "epoch": 1})
    folder.settings_file.unlink()
    (folder.path / "settings.json.0a1b2c3d.partial").write_bytes(b"{")
    assert not folder.holds_run()
    folder.begin(SETTINGS)
    assert folder.metrics("epoch") == []
    assert not list(folder.path.glob("*.partial"))


def test_a_damaged_line_does_not_hide_the_last_epoch(folder):
    ran(folder, 2)
    with folder.metrics_file.open("ab") as file:
        file.write(b'{"kind": \xff"epoch"}\n[3]\n{"kind": "epo')
    assert folder.last_epoch() == {"kind": "epoch", "epoch": 2}


def test_a_finished_run_keeps_one_checkpoint(folder):
    folder = ran(folder, 3)
    folder.checkpoint_file.write_bytes(b"")
    folder.load_checkpoint()
    ran(folder, 1)
    folder.finish({})
    assert {file.name for file in folder.path.iterdir()} == {
        *("settings.json", "metrics.jsonl", "checkpoint.pt", "record.json"),
    }


# Full disks


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_metrics_on_a_full_disk(folder):
    folder.metrics_file.unlink(missing_ok=True)
    folder.metrics_file.symlink_to("/dev/full")
    with pytest.raises(UsageError, match=r"metrics\.jsonl cannot be written: No space left on device \(.* MB are"):
        folder.log({"kind": "epoch", "epoch": 1})


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_every_write_may_meet_a_full_disk(folder, monkeypatch, error):
    ran(folder, 1)
    before = {file.name: file.read_bytes() for file in folder.path.iterdir()}

    def full(file) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", full)
    for name, write in {
        "settings.json": lambda: folder.begin(SETTINGS),
        "metrics.jsonl": lambda: folder.save_checkpoint({"epochs": 2}),
        "checkpoint.pt": lambda: folder.checkpoints.save(Checkpoint({"epochs": 2}, SETTINGS, "")),
        "model.safetensors": lambda: folder.save_model({"weight": torch.zeros(2)}),
        "record.json": lambda: folder.finish({}),
    }.items():
        with pytest.raises(UsageError, match=rf"{name} cannot be written: .* MB are free\); make room and resume"):
            write()
        assert folder.path.joinpath("settings.json").exists()
    del before["metrics.jsonl"]  # which begin() empties
    assert {name: (folder.path / name).read_bytes() for name in before} == before
    assert {file.name for file in folder.path.iterdir()} == {*before, "metrics.jsonl"}


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=r"file/run cannot be written: Not a directory; fix that"):
        RunFolder(tmp_path / "file" / "run").begin(SETTINGS)


def test_model_file_takes_tied_and_channels_last_weights(folder):
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    folder.save_model({"one": weight, "two": weight})
    loaded = safetensors.torch.load_file(folder.model_file)
    assert torch.equal(loaded["one"], weight)
    assert torch.equal(loaded["two"], weight)
