"""The study's variants of FGGP (experiments/variants.py) compared with their formulas."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import fggp

VARIANTS = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "variants.py"))


def over_root_mean_square(g):
    return g.abs() / g.square().mean().sqrt()


# Maps weight, gradient, and averages of g, |g| and g² to the scores of the steps, in order.
FORMULAS = {
    "RunningGradient": lambda w, g, a: (a["size"], w.abs()),
    "MeanGradient": lambda w, g, a: (a["g"].abs(), w.abs()),
    "AdamStep": lambda w, g, a: (a["g"].abs() / a["square"].sqrt(), w.abs()),
    "LayerScaled": lambda w, g, a: (over_root_mean_square(g), w.abs()),
    "GrowthFirst": lambda w, g, a: (-w * a["g"], w.abs()),
    "FisherSecond": lambda w, g, a: (g.abs(), w.square() * a["square"]),
    "FisherOnly": lambda w, g, a: (w.square() * a["square"],),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_variant_prunes_what_its_formula_says(name):
    torch.manual_seed(0)
    model = nn.Linear(60, 25, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = VARIANTS[name]()
    pruner = fggp.Pruner(model, optimizer, sparsity=0.9, begin=0, end=24, every=3, method=method, init_sparsity=0)
    weight, kept = model.weight.detach(), torch.ones(1500, dtype=torch.bool)
    average = {"g": 0.0, "size": 0.0, "square": 0.0}
    updates = 0
    for step in range(1, 25):
        g = torch.randn(25, 60, dtype=torch.double) * torch.rand(25, 60, dtype=torch.double)
        model.weight.grad = g.clone()
        # float64 weights have float64 averages, so both sides differ at most in the last digit.
        average["g"] = 0.9 * average["g"] + 0.1 * g
        average["size"] = 0.9 * average["size"] + 0.1 * g.abs()
        average["square"] = 0.99 * average["square"] + 0.01 * g.square()
        before = weight.clone()
        optimizer.step()
        if pruner.last_update == step:
            updates += 1
            left = round(1500 * (1 - pruner.schedule.sparsity_at(step)))
            pool, active = kept.nonzero().flatten(), int(kept.sum())
            *first, last = (score.flatten() for score in FORMULAS[name](before, g, average))
            for score in first:
                pool = pool[score[pool].argsort()[: max(active // 2, active - left)]]
            kept[pool[last[pool].argsort()[: active - left]]] = False
            assert torch.equal(pruner.masks["weight"].flatten(), kept)
    assert updates == 8


@pytest.mark.parametrize(("name", "early", "late"), [("AnnealedUp", 0.25, 0.75)])
def test_the_rate_that_rises(name, early, late):
    first, last = (
        fggp.methods.Update(step=1, active=1000, excess=10, progress=progress, seed=0) for progress in (0.0, 1.0)
    )
    method = VARIANTS[name]()
    assert method.chain(first)[0].quota == round(1000 * early)
    assert method.chain(last)[0].quota == round(1000 * late)
