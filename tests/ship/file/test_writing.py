"""Writing a file leaves the new file or the old one, also when the process is killed."""

import os
import subprocess
import sys

import pytest

import fggp
from small_files import mlp


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, failing):
    model = mlp()
    fggp.save(model, tmp_path / "f")
    old = (tmp_path / "f").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space"):
        fggp.save(mlp(1), tmp_path / "f")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [old]


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path):
    fggp.save(mlp(), tmp_path / "f")
    old = (tmp_path / "f").read_bytes()
    script = "import os, sys, torch, fggp; os.replace = lambda *a: os._exit(9); "
    script += "fggp.save(torch.nn.Linear(3, 3), sys.argv[1])"
    assert subprocess.run([sys.executable, "-c", script, tmp_path / "f"]).returncode == 9
    assert (tmp_path / "f").read_bytes() == old
