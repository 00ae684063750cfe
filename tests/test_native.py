"""Finding and loading the kernels."""

import subprocess
import sys

import pytest

from builds import build_name, every_build
from fggp import native


def test_nothing_is_loaded_before_it_is_needed():
    code = "import fggp; from fggp import native; raise SystemExit(native.load.cache_info().currsize)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_all_builds_of_this_processor_are_tested():
    assert [build_name(build) for build in every_build()] == list(native.build_names())


def test_kernels_of_another_version_are_refused(tmp_path, monkeypatch):
    path = next(native.installed_builds(native.package_folders()))
    monkeypatch.setattr(native, "INTERFACE", native.INTERFACE + 1)
    with pytest.raises(native.KernelsMissingError, match="another version"):
        native.open_library(path)
    (tmp_path / "libfggp_x.so").write_bytes(b"no library")
    with pytest.raises(native.KernelsMissingError, match="cannot be loaded"):
        native.open_library(tmp_path / "libfggp_x.so")


def test_an_installation_without_kernels_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "package_folders", lambda: [str(tmp_path)])
    with pytest.raises(native.KernelsMissingError, match="installed without its kernels"):
        native.load.__wrapped__()
