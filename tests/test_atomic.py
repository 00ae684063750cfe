"""Atomic file writes: a file appears complete, or not at all."""

import os

import pytest

from fggp.atomic import atomic_path, atomic_write


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(file) as new:
            new.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    with atomic_write(file) as new:
        new.write(b"new")
    assert file.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    calls = []
    partials = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def noted(*args, name=name, original=original):
            calls.append(name)
            partials.extend(file.read_bytes() for file in tmp_path.glob("*.partial"))
            original(*args)

        monkeypatch.setattr(os, name, noted)
    with atomic_write(tmp_path / "file") as new:
        new.write(b"new")
    assert calls == ["fsync", "replace", "fsync"]
    assert partials == [b"new", b"new"]


def test_two_may_write_the_same_file_at_once(tmp_path):
    file = tmp_path / "file"
    with atomic_write(file) as one:
        one.write(b"one, ")
        with atomic_write(file) as two:
            two.write(b"two")
        assert file.read_bytes() == b"two"
        one.write(b"and all of it")
    assert file.read_bytes() == b"one, and all of it"
    assert os.listdir(tmp_path) == ["file"]


def test_what_was_there_can_be_kept(tmp_path):
    file, kept = tmp_path / "file", tmp_path / "kept"
    for content in (b"one", b"two", b"three"):
        with atomic_write(file, keep=kept) as new:
            new.write(content)
    assert file.read_bytes() == b"three"
    assert kept.read_bytes() == b"two"
    assert set(os.listdir(tmp_path)) == {"file", "kept"}


def test_between_two_renames_the_old_file_has_the_other_name(tmp_path, monkeypatch):
    file, kept = tmp_path / "file", tmp_path / "kept"
    file.write_bytes(b"old")
    kept.write_bytes(b"older")
    replace, seen = os.replace, []

    def noted(source, target):
        replace(source, target)
        seen.append({path.name: path.read_bytes() for path in (file, kept) if path.exists()})

    monkeypatch.setattr(os, "replace", noted)
    with atomic_write(file, keep=kept) as new:
        new.write(b"new")
    assert seen == [{"kept": b"old"}, {"file": b"new", "kept": b"old"}]


def test_a_failing_write_moves_nothing(tmp_path):
    file, kept = tmp_path / "file", tmp_path / "kept"
    file.write_bytes(b"old")

    def failing() -> None:
        with atomic_write(file, keep=kept) as new:
            new.write(b"half of the n")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        failing()
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_writers_that_want_a_name(tmp_path):
    file = tmp_path / "file.onnx"
    with atomic_path(file) as partial:
        assert partial.parent == tmp_path
        partial.write_bytes(b"new")
        assert not file.exists()
    assert file.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file.onnx"]
