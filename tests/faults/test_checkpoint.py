"""Checkpoints that were damaged, made to harm, or met a full disk."""

import errno
import io
import pickle
import random
import resource
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import damage
from fggp.lab.base.errors import UsageError
from fggp.lab.training import checkpoint
from fggp.lab.training.checkpoint import Checkpoint, Checkpoints, DamagedError, read, write


def made(epochs: int) -> Checkpoint:
    state = {"epochs": epochs, "weight": torch.full((200, 50), float(epochs)), "mask": torch.ones(7, dtype=torch.uint8)}
    return Checkpoint(state, {"lr": 0.1, "rate": None}, '{"kind": "epoch"}\n' * epochs)


def epochs(read_back: Checkpoint | None) -> int:
    assert read_back is not None
    assert read_back.metrics.count("\n") == read_back.state["epochs"]
    assert torch.equal(read_back.state["weight"], made(read_back.state["epochs"]).state["weight"])
    return read_back.state["epochs"]


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    """The checkpoints of three epochs; the last two exist."""
    own = Checkpoints(tmp_path)
    for number in (1, 2, 3):
        own.save(made(number))
    return own


def test_two_are_kept(checkpoints):
    assert epochs(read(checkpoints.newest)) == 3
    assert epochs(read(checkpoints.previous)) == 2
    assert {file.name for file in checkpoints.newest.parent.iterdir()} == {"checkpoint.pt", "checkpoint.previous.pt"}


def test_none_was_written(tmp_path):
    assert Checkpoints(tmp_path).load() is None


def test_torch_reads_it_as_it_is(checkpoints):
    assert torch.load(checkpoints.newest, weights_only=True)["state"]["epochs"] == 3


@pytest.mark.parametrize("how", damage.DAMAGES)
@pytest.mark.parametrize("seed", range(5))
def test_the_newest_is_damaged(checkpoints, capsys, how, seed):
    damage.DAMAGES[how](checkpoints.newest, random.Random(seed))
    there = checkpoints.newest.read_bytes() if checkpoints.newest.exists() else None
    assert epochs(checkpoints.load()) == 2
    told = capsys.readouterr().err
    assert str(checkpoints.newest) in told
    assert told.count("\n") == 1
    # What is damaged must not push the good one out when the next is written.
    assert (checkpoints.damaged.read_bytes() if checkpoints.damaged.exists() else None) == there
    checkpoints.save(made(3))
    assert epochs(read(checkpoints.newest)) == 3
    assert epochs(read(checkpoints.previous)) == 2
    assert not (checkpoints.newest.parent / "trapped").exists()


def test_every_single_bit_is_noticed(tmp_path):
    file = tmp_path / "checkpoint.pt"
    write(file, Checkpoint({"weight": torch.zeros(3)}, {}, ""))
    whole = file.read_bytes()
    for place in (*range(0, len(whole) - 64, 37), *range(len(whole) - 64, len(whole))):
        for bit in (1, 128):
            changed = bytearray(whole)
            changed[place] ^= bit
            file.write_bytes(changed)
            with pytest.raises(DamagedError, match=r"checkpoint\.pt is damaged: "):
                read(file)


def test_every_cut_is_noticed(tmp_path):
    file = tmp_path / "checkpoint.pt"
    write(file, Checkpoint({"weight": torch.zeros(3)}, {}, ""))
    whole = file.read_bytes()
    for end in (*range(0, len(whole), 29), len(whole) - 1):
        file.write_bytes(whole[:end])
        with pytest.raises(DamagedError, match=r"it is empty|it ends after|it was cut"):
            read(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(DamagedError):
        read(file)


@pytest.mark.parametrize("how", ["cut", "a bit flipped", "emptied", "overwritten", "a trap"])
def test_both_are_damaged(checkpoints, how):
    for file in (checkpoints.newest, checkpoints.previous):
        damage.DAMAGES[how](file, random.Random(0))
    before = {file.name: file.read_bytes() for file in checkpoints.newest.parent.iterdir()}
    with pytest.raises(
        UsageError, match=r"no checkpoint can be read: .*checkpoint\.pt is .*previous\.pt is"
    ) as refused:
        checkpoints.load()
    assert "\n" not in str(refused.value)
    assert {file.name: file.read_bytes() for file in checkpoints.newest.parent.iterdir()} == before


def test_the_only_one_is_damaged(tmp_path):
    own = Checkpoints(tmp_path)
    own.save(made(1))
    damage.flip(own.newest, random.Random(0))
    with pytest.raises(UsageError, match=r"checkpoint\.pt is damaged: .*previous\.pt is not there"):
        own.load()


def test_another_version_is_no_damage(checkpoints, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERSION", 2)
    checkpoints.save(made(4))
    monkeypatch.undo()
    with pytest.raises(UsageError, match="has version 2; this fggp reads version 1"):
        checkpoints.load()
    assert not checkpoints.damaged.exists()


def test_what_may_not_be_read_is_no_damage(checkpoints, monkeypatch):
    def refused(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UsageError, match=r"checkpoint\.pt cannot be read: Permission denied"):
        checkpoints.load()


def test_a_disk_that_cannot_read_is_damage(checkpoints, monkeypatch):
    check = checkpoint.verify

    def failing(path, file):
        if path == checkpoints.newest:
            raise OSError(errno.EIO, "Input/output error")
        check(path, file)

    monkeypatch.setattr(checkpoint, "verify", failing)
    assert epochs(checkpoints.load()) == 2


# Traps


@pytest.fixture
def trapped(tmp_path) -> Path:
    return tmp_path / "trapped"


def test_the_trap_works(tmp_path, trapped):
    """On readers that run what they read: or the tests below would prove nothing."""
    pickle.loads(pickle.dumps(damage.Trap(trapped))).close()
    assert trapped.exists()
    trapped.unlink()
    damage.trapped_archive(tmp_path / "file.pt", trapped)
    torch.load(tmp_path / "file.pt", weights_only=False)["state"]["trap"].close()
    assert trapped.exists()


def test_a_trap_with_a_right_checksum(tmp_path, trapped):
    damage.trapped_archive(tmp_path / "checkpoint.pt", trapped)
    with pytest.raises(DamagedError, match=r"checkpoint\.pt is damaged: it holds what no checkpoint does"):
        read(tmp_path / "checkpoint.pt")
    assert not trapped.exists()


@pytest.mark.parametrize("content", [[1, 2], {"state": 1, "settings": {}, "metrics": ""}, {"epochs": 3}])
def test_something_else_with_a_right_checksum(tmp_path, content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    (tmp_path / "checkpoint.pt").write_bytes(damage.sealed(buffer.getvalue()))
    with pytest.raises(DamagedError, match="something else than a run"):
        read(tmp_path / "checkpoint.pt")


# Full disks


def test_a_disk_that_takes_no_more(checkpoints):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UsageError, match=r"checkpoint\.pt cannot be written: File too large \(.* MB are free\)"):
            checkpoints.save(made(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {file.name for file in checkpoints.newest.parent.iterdir()} == {"checkpoint.pt", "checkpoint.previous.pt"}
    assert epochs(read(checkpoints.newest)) == 3
    assert epochs(read(checkpoints.previous)) == 2


class Full(io.BytesIO):
    """Accepts a limited number of bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data) -> int:
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_whichever_write_it_is_that_a_full_disk_refuses(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint.pt"
    write(file, made(1))
    length = file.stat().st_size
    for room in (0, 1, 100, 2_000, length // 2, length - 100, length - 40, length - 1):
        monkeypatch.setattr(checkpoint, "atomic_write", lambda path, keep, room=room: nullcontext(Full(room)))
        with pytest.raises(UsageError, match=r"checkpoint\.pt cannot be written: No space left on device \(.* MB are"):
            write(file, made(2))
    monkeypatch.setattr(checkpoint, "atomic_write", lambda path, keep: nullcontext(Full(length)))
    write(file, made(1))
