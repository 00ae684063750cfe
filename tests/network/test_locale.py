"""Descriptions are read alike in every locale: C's functions would take a point for the end of a number in some."""

import locale
import os
import subprocess

import pytest
import torch
import torch.nn.functional as F

from networks import run_one


@pytest.fixture
def decimal_comma(tmp_path, monkeypatch):
    """A locale that writes 0,1."""
    command = ["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"]
    try:
        subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("not installed: localedef")
    monkeypatch.setenv("LOCPATH", os.fspath(tmp_path))
    before = locale.setlocale(locale.LC_NUMERIC)
    try:
        locale.setlocale(locale.LC_NUMERIC, "de_DE.UTF-8")
    except locale.Error:
        pytest.skip("the locale de_DE cannot be made here")
    yield
    locale.setlocale(locale.LC_NUMERIC, before)


@pytest.mark.usefixtures("decimal_comma")
def test_decimals():
    assert locale.localeconv()["decimal_point"] == ","
    x = torch.linspace(-3, 3, 40)
    assert torch.equal(run_one("activate", [x], activation=["leaky_relu", 0.125]), F.leaky_relu(x, 0.125))
