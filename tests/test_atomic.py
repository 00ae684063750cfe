"""Files that are there completely or not at all."""

import os

import pytest

from fggp.atomic import atomic_write


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
