"""Files that tests of damaged and hostile files alter."""

import pytest
import torch
import version1_files
from torch import nn

import fggp
from small_files import Holder, pruned, random_bits


@pytest.fixture(scope="module")
def model():
    """A model with dense, sparse, tied and bool tensors."""
    model = nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20), Holder(random_bits((400,), torch.bool, 0.1, 0)))
    model.append(nn.Linear(20, 20, bias=False))
    model[3].weight = model[0].weight
    return pruned(model, 0.9)


@pytest.fixture(scope="module")
def sample(model, tmp_path_factory):
    """The model, its file's path, and the file's bytes."""
    path = tmp_path_factory.mktemp("sample") / "f"
    fggp.save(model, path)
    return model, path, path.read_bytes()


@pytest.fixture(scope="module")
def old_sample(model, tmp_path_factory):
    """The model, its file of version 1, and the file's bytes."""
    path = tmp_path_factory.mktemp("old_sample") / "f"
    version1_files.save(path, model)
    return model, path, path.read_bytes()
