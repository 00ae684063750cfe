"""What is said about the weights that are not pruned."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import helpers
from fggp.model.coverage import Coverage, LeftOut, coverage
from fggp.model.find import find_prunable


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10)
        self.head.weight = self.embedding.weight
        self.fc = nn.Linear(4, 6)
        self.other = nn.Linear(4, 5)
        self.normed = weight_norm(nn.Linear(4, 3))
        self.spectral = spectral_norm(nn.Linear(4, 2))
        self.frozen = nn.Linear(4, 7).requires_grad_(False)
        self.lstm = nn.LSTM(4, 2)
        self.norm = nn.LayerNorm([2, 4])
        self.token = nn.Parameter(torch.ones(1, 1, 4))
        self.position = nn.Parameter(torch.ones(1, 5, 4))
        self.lora = nn.Linear(4, 1, bias=False)
        self.nothing = nn.Parameter(torch.ones(0, 3))
        self.late = nn.parameter.UninitializedParameter(requires_grad=False)


@pytest.mark.filterwarnings("ignore:Initializing zero-element", "ignore:.*will not be pruned")
def test_every_parameter_is_counted_once_and_under_its_reason():
    model = Everything()
    found = coverage(model, find_prunable(model, exclude="other.*"))
    groups = {group.reason: (group.count, group.names) for group in found.left_out}
    vectors = [
        *("head.bias", "fc.bias", "other.bias", "normed.bias", "spectral.bias"),
        "normed.parametrizations.weight.original0",
        *("lstm.bias_ih_l0", "lstm.bias_hh_l0", "norm.weight", "norm.bias", "token"),
    ]
    assert groups == {
        "frozen": (7 * 4 + 7, ("frozen.weight", "frozen.bias")),
        "embeddings": (40, ("embedding.weight",)),
        "adapters": (4, ("lora.weight",)),
        "recurrent": (8 * 4 + 8 * 2, ("lstm.weight_ih_l0", "lstm.weight_hh_l0")),
        "under a parametrization (SpectralNorm)": (8, ("spectral.parametrizations.weight.original",)),
        "not chosen by include and exclude": (20, ("other.weight",)),
        "parameters of other modules": (20, ("position",)),
        "biases, norms, other vectors": (
            10 + 6 + 5 + 3 + 2 + 3 + 8 + 8 + 16 + 4,
            tuple(name for name, _ in model.named_parameters() if name in vectors),
        ),
    }
    assert len(groups["biases, norms, other vectors"][1]) == len(vectors)
    assert found.prunable == 6 * 4 + 3 * 4
    sizes = [p.numel() for p in model.parameters() if not isinstance(p, nn.parameter.UninitializedParameter)]
    assert found.total == sum(sizes) == found.prunable + sum(group.count for group in found.left_out)
    assert found.share == found.prunable / found.total
    counts = [group.count for group in found.left_out]
    assert counts == sorted(counts, reverse=True)


def test_it_is_said_in_at_most_eight_lines():
    groups = tuple(LeftOut(f"reason {i}", 100 - i, ("a", "b", "c")[: i + 1]) for i in range(9))
    many = Coverage(2000, 1000, groups)
    assert many.lines() == [
        "50.0% of the model's 2,000 parameters can be pruned; left out:",
        "  reason 0: 100 in 1 (a)",
        "  reason 1: 99 in 2 (a, b)",
        "  reason 2: 98 in 3 (a, b, …)",
        *(f"  reason {i}: {100 - i} in 3 (a, b, …)" for i in (3, 4, 5)),
        "  3 more reasons: 279",
    ]
    assert len(Coverage(2000, 1000, groups[:7]).lines()) == 8
    assert len(Coverage(2000, 1000, groups[:8]).lines()) == 8
    assert Coverage(9, 9, ()).lines() == ["100.0% of the model's 9 parameters can be pruned"]


def test_a_model_that_is_mostly_left_out_warns():
    model = nn.Sequential(nn.Embedding(100, 4), nn.Linear(4, 4))
    told = coverage(model, find_prunable(model)).warning()
    assert told.startswith("only 3.8% of the model's 420 parameters can be pruned")
    assert "embeddings: 400 in 1 (0.weight)" in told
    assert "include=" in told
    model = helpers.mlp()
    assert coverage(model, find_prunable(model)).warning() is None
    half = LeftOut("frozen", 5, ("a",))
    assert Coverage(10, 5, (half,)).warning() is None
    assert Coverage(11, 5, (half,)).warning() is not None


def test_a_model_without_parameters():
    assert coverage(nn.ReLU(), []) == Coverage(0, 0, ())
    assert coverage(nn.ReLU(), []).share == 0.0
    assert coverage(nn.ReLU(), []).warning() is None


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_a_language_model_that_is_mostly_vocabulary():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=2000, n_positions=32)
    model = transformers.GPT2LMHeadModel(config)
    found = coverage(model, find_prunable(model))
    assert found.prunable == 12 * 16 * 16
    assert found.left_out[0] == LeftOut("embeddings", 2032 * 16, ("transformer.wte.weight", "transformer.wpe.weight"))
    assert found.warning()
