"""What the recipes share: how pruning failed in other people's training loops without a word, one test each."""

import torch

import helpers


def zeros(model, pruner):
    """The share of zeros among the pruned weights of a model or a copy of it."""
    weights = [dict(model.named_parameters())[name] for name in pruner.masks]
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def kinds(pruner):
    return [finding.kind for finding in pruner.check()]


def train(model, optimizer, steps, loss=None):
    for t in steps:
        optimizer.zero_grad()
        (helpers.loss_of(model, t) if loss is None else loss(model, t)).backward()
        optimizer.step()


def batch(t, size=16):
    generator = torch.Generator().manual_seed(t)
    return torch.randn(32, size, generator=generator)


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021) with two steps that the user calls."""

    def __init__(self, params, base, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        for p in parameters:
            self.state[p]["before"] = p.clone()
            p.add_(p.grad * (0.05 / (norm + 1e-12)))

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if "before" in self.state[p]:
                    p.copy_(self.state[p]["before"])
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            closure()
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()
