"""What training minimises, and how: the loss with a teacher, the optimizer, and its learning rate at each step."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR

from fggp.lab.training.settings import ResolvedSettings

TEMPERATURE = 2.0
"""Divides the logits that a distilled network is compared by, so that small probabilities count too."""
TEACHER_SHARE = 0.5
"""Of the loss; the rest is the cross-entropy with the labels."""


class Distilled:
    """Cross-entropy with the labels, and with the outputs of a teacher (Hinton, Vinyals & Dean 2015, arXiv 1503.02531).

    Args:
        network: the teacher, as it is now; a copy of it is kept.
        label_smoothing: share of each label that is spread over all classes.
    """

    def __init__(self, network: nn.Module, label_smoothing: float) -> None:
        self.teacher = copy.deepcopy(network).eval().requires_grad_(False)
        self.label_smoothing = label_smoothing

    def __call__(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss [] of a batch's logits; ``images`` are normalised."""
        with torch.no_grad():
            wanted = self.teacher(images)
        own, soft = ((x.float() / TEMPERATURE).log_softmax(1) for x in (logits, wanted))
        # The factor keeps the gradients of the same size at every temperature.
        distance = TEMPERATURE**2 * F.kl_div(own, soft, reduction="batchmean", log_target=True)
        hard = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return TEACHER_SHARE * distance + (1 - TEACHER_SHARE) * hard


def make_optimizer(model: nn.Module, settings: ResolvedSettings) -> torch.optim.Optimizer:
    """Return the optimizer of all parameters of a network."""
    # One GPU kernel for many weights; SGD has none for sharded weights. The step hooks work with both.
    fused = True if settings.device.startswith("cuda") and not settings.fsdp else None
    if settings.momentum is None:
        return torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)
    return torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay,
        fused=fused,
    )


def make_scheduler(
    optimizer: torch.optim.Optimizer, settings: ResolvedSettings, steps: int, steps_per_epoch: int
) -> LRScheduler:
    """Return the schedule of the learning rate over all steps of a run; it is stepped after every optimizer step."""
    milestones = [max(1, steps // 2), max(1, steps * 3 // 4)]
    if settings.schedule == "step" and settings.warmup == 0:
        # What all runs had before there were other schedules: their checkpoints resume with it, to the bit.
        return MultiStepLR(optimizer, milestones, gamma=0.1)
    rising = round(settings.warmup * steps_per_epoch)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        if settings.schedule == "step":
            return float(0.1 ** sum(step >= milestone for milestone in milestones))
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return LambdaLR(optimizer, share)
