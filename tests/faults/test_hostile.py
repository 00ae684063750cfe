"""Files that would run code, wherever else fggp reads what may come from others."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import damage
import fggp


@pytest.fixture
def trapped(tmp_path) -> Path:
    return tmp_path / "trapped"


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize("name", ["small.safetensors", "small.pt"])
@pytest.mark.parametrize("as_archive", [True, False])
def test_a_small_file(tmp_path, trapped, name, as_archive):
    file = tmp_path / name
    if as_archive:
        damage.trapped_archive(file, trapped)
    else:
        file.write_bytes(pickle.dumps(damage.Trap(trapped)))
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=name):
        fggp.load(file, model)
    assert not trapped.exists()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def pruner() -> fggp.Pruner:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return fggp.Pruner(model, optimizer, sparsity=0.5, begin=0, end=4, every=1)


def test_the_state_of_a_pruner(tmp_path, trapped):
    own = pruner()
    state = {**own.state_dict(), "masks": damage.Trap(trapped)}
    torch.save(state, tmp_path / "pruner.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        own.load_state_dict(torch.load(tmp_path / "pruner.pt", weights_only=True))
    assert not trapped.exists()


@pytest.mark.parametrize("name", ["__import__", "os.system", "builtins.exec"])
def test_no_name_in_the_state_of_a_pruner_is_looked_up(trapped, name):
    own = pruner()
    state = own.state_dict()
    state["method"] = {"name": name, "rate": f"open({str(trapped)!r}, 'w')"}
    state["schedule"] = {**state["schedule"], "curve": name}
    with pytest.raises(ValueError, match=name):
        own.load_state_dict(state)
    assert not trapped.exists()
