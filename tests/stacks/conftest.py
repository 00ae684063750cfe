"""Fixtures for the trainers: the packages that Lightning comes as, and a folder that is not made yet."""

import pytest


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def either(request):
    """Either package: they have the same names, and classes of their own."""
    return pytest.importorskip(request.param)


@pytest.fixture
def pl():
    return pytest.importorskip("lightning.pytorch")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"
