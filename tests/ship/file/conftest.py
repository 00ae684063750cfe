"""A file that tests of damaged and hostile files alter."""

import pytest
import torch
from torch import nn

import fggp
from small_files import Holder, pruned, random_bits


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A model with dense, sparse, tied and bool tensors, its file's path, and the file's bytes."""
    model = nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20), Holder(random_bits((400,), torch.bool, 0.1, 0)))
    model.append(nn.Linear(20, 20, bias=False))
    model[3].weight = model[0].weight
    pruned(model, 0.9)
    path = tmp_path_factory.mktemp("sample") / "f"
    fggp.save(model, path)
    return model, path, path.read_bytes()
