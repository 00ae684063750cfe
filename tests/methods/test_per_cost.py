"""The experiment whose ranking counts what a weight costs (experiments/per_nanosecond), beside a slow ranking."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fggp

FOLDER = Path(__file__).parents[2] / "experiments" / "per_nanosecond"
METHODS = runpy.run_path(str(FOLDER / "per_cost.py"))
PerCost = METHODS["PerCost"]


def masks(method: fggp.Method, seed: int) -> list[torch.Tensor]:
    """Prune two layers by gradients of which many are zero."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 9, bias=False), nn.Linear(9, 7, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = fggp.Pruner(model, optimizer, sparsity=0.7, begin=0, end=4, every=2, method=method)
    for _ in range(4):
        for layer in model:
            layer.weight.grad = torch.randn_like(layer.weight) * (torch.rand_like(layer.weight) < 0.5)
        optimizer.step()
    return [pruner.masks[name] for name in ("0.weight", "1.weight")]


def slow_masks(costs: tuple[float, float], power: float, rate: float, seed: int) -> list[torch.Tensor]:
    """The same, by sorting all weights by what defines their rank."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 9, bias=False), nn.Linear(9, 7, bias=False))
    weights = [layer.weight.detach() for layer in model]
    sizes = [w.numel() for w in weights]
    divisor = np.repeat(np.array(costs) ** power, sizes)
    size = np.concatenate([w.abs().flatten().double() for w in weights]) / divisor
    kept = np.ones(sum(sizes), dtype=bool)
    schedule = fggp.Schedule(0.7, begin=0, end=4, every=2)
    for step in range(1, 5):
        grads = [torch.randn_like(w) * (torch.rand_like(w) < 0.5) for w in weights]
        if step in (2, 4):
            slope = np.concatenate([g.abs().flatten().double() for g in grads]) / divisor
            left = round((1 - schedule.sparsity_at(step)) * len(kept))
            active = np.flatnonzero(kept)
            excess = len(active) - left
            first = active[np.lexsort((active, size[active], slope[active]))][: max(excess, int(rate * len(active)))]
            kept[first[np.lexsort((first, size[first]))][:excess]] = False
    parts = np.split(kept, np.cumsum(sizes)[:-1])
    return [torch.from_numpy(part).view_as(w) for part, w in zip(parts, weights, strict=True)]


@pytest.mark.filterwarnings("ignore:no weight is left in:RuntimeWarning")  # such costs can empty a layer
@given(
    costs=st.tuples(st.sampled_from([0.25, 1.0, 4.0, 16.0]), st.sampled_from([0.25, 1.0, 4.0, 16.0])),
    power=st.sampled_from([0.0, 0.5, 1.0]),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_weights_are_ranked_by_score_per_cost(costs, power, rate, seed):
    method = PerCost(rate, costs={"0.weight": costs[0], "1.weight": costs[1]}, power=power)
    assert all(map(torch.equal, masks(method, seed), slow_masks(costs, power, rate, seed)))


def test_equal_costs_are_no_costs():
    method = PerCost(costs=dict.fromkeys(("0.weight", "1.weight"), 8.0))
    assert all(map(torch.equal, masks(method, 1), masks(fggp.FGGP(), 1)))


def test_a_costly_layer_keeps_less():
    costly, plain = (masks(method, 1) for method in (PerCost(costs={"0.weight": 4.0, "1.weight": 1.0}), fggp.FGGP()))
    assert costly[0].sum() < plain[0].sum()
    assert costly[1].sum() > plain[1].sum()


def test_a_layer_without_a_cost_is_named():
    with pytest.raises(ValueError, match=r"costs has no '1.weight'; it must name every prunable weight"):
        masks(PerCost(costs={"0.weight": 1.0}), 1)


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan"), float("inf")])
def test_a_cost_is_a_number_above_0(cost):
    with pytest.raises(ValueError, match=r"costs has .* for 'a'; a cost must be a number above 0"):
        PerCost(costs={"a": cost})


@pytest.fixture
def measuring(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return runpy.run_path(str(FOLDER / "costs.py"))


def test_output_positions_are_counted(measuring):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(4 * 4 * 5, 2))
    assert measuring["positions"](model, torch.randn(1, 3, 8, 10)) == {"0.weight": 20, "2.weight": 1}


def test_the_slope_is_what_each_weight_adds(measuring):
    assert measuring["slope"]([10, 20, 40], [7.0, 9.0, 13.0]) == pytest.approx(0.2)
