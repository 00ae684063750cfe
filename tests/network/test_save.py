"""`Compiled.save`: a file that the library loads, and when there is none."""

import pytest
import safetensors
import torch
from torch import nn

import fggp
from exported import relative_difference
from networks import closing, load


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(8, 4)).eval()
    model[0].weight.data[torch.rand(8, 3, 3, 3) < 0.8] = 0
    return model


def test_a_saved_network_runs_without_pytorch(model, tmp_path):
    file = tmp_path / "net.fggp"
    fggp.compile(model, torch.randn(1, 3, 16, 16)).save(file, metadata={"classes": "cat, dog"})
    with safetensors.safe_open(file, "pt") as header:
        assert header.metadata()["classes"] == "cat, dog"
    with closing(load(file)) as network:
        assert network.description["inputs"] == [{"name": "input", "type": "F32", "shape": ["N", 3, "H", "W"]}]
        for shape in ((1, 3, 16, 16), (5, 3, 9, 20)):
            images = torch.randn(shape)
            assert relative_difference(network.run({"input": images})["output"], model(images).detach()) <= 1e-6


def test_a_network_is_saved_as_it_was_compiled(model, tmp_path):
    fast = fggp.compile(model, torch.randn(1, 3, 16, 16))
    model[0].weight.data[0, 0, 0, 0] += 1
    with pytest.raises(RuntimeError, match="weights of this Sequential have changed since it was compiled"):
        fast.save(tmp_path / "net.fggp")
    assert not list(tmp_path.iterdir())


def test_a_model_that_runs_on_pytorch_cannot_be_saved(tmp_path):
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.warns(UserWarning, match="the whole model runs on PyTorch"):
        fast = fggp.compile(Branches(), torch.ones(2, 3))
    with pytest.raises(
        RuntimeError, match=r"no network to save: the whole model runs on PyTorch: torch\.export cannot"
    ):
        fast.save(tmp_path / "net.fggp")
