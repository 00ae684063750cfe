"""Losses and learning rates, beside their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fggp.lab.training.objective import TEACHER_SHARE, TEMPERATURE, Distilled, make_scheduler
from fggp.lab.training.settings import TrainSettings


def test_distilled_loss():
    torch.manual_seed(0)
    network, images, labels = nn.Linear(3, 4), torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])
    distilled = Distilled(network, label_smoothing=0.1)
    wanted = (network(images).detach() / TEMPERATURE).softmax(1)
    with torch.no_grad():
        network.weight += 1  # the teacher stays as it was
    logits = network(images)
    own = (logits / TEMPERATURE).softmax(1)
    divergence = (wanted * (wanted / own).log()).sum(1).mean()
    smoothed = 0.9 * F.one_hot(labels, 4) + 0.1 / 4
    hard = -(smoothed * logits.log_softmax(1)).sum(1).mean()
    expected = TEACHER_SHARE * TEMPERATURE**2 * divergence + (1 - TEACHER_SHARE) * hard
    assert distilled(images, logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def rates(steps, steps_per_epoch, **options):
    settings = TrainSettings(epochs=steps // steps_per_epoch, lr=1.0, device="cpu", **options).resolve()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer, settings, steps, steps_per_epoch)
    found = []
    for _ in range(steps):
        optimizer.step()
        found.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return found


def test_cosine_after_a_warm_up():
    expected = [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6] + [(1 + math.cos(math.pi * i / 15)) / 2 for i in range(15)]
    assert rates(20, 10, schedule="cosine", warmup=0.5) == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_steps(warmup):
    found = rates(20, 10, schedule="step", warmup=warmup)
    assert found[2:] == pytest.approx([1.0] * 8 + [0.1] * 5 + [0.01] * 5)
    assert found[:2] == pytest.approx([1.0, 1.0] if warmup == 0 else [1 / 3, 2 / 3])
