"""FGGP that counts what a weight costs: it ranks by score per cost. An experiment.

With a global scope, layers compete by score alone. But a weight of a convolution is used at each of its output
positions, so in the first layers of a network it costs many times what it costs in the last. Here both of FGGP's
scores are divided by the cost, so that at equal sparsity the network is faster. How much the cost counts is a power of
it: at 1 this is the score per nanosecond; lower powers lie between that and plain FGGP.

    python experiments/per_nanosecond/costs.py digits-cnn
    fggp train --method experiments/per_nanosecond/per_cost.py:PerNanosecond

The first measures the costs of a network and writes them to costs.json in the current folder, where the second reads
them. In Python:

    fggp.Pruner(…, method=PerCost(costs={"conv1.weight": 3.1, …}))
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

import fggp
from fggp.methods import candidates
from fggp.scores import Score, gradient, magnitude
from fggp.weights.layers import Block

MEASURED = Path("costs.json")


def per_cost(score: Score, costs: Mapping[str, float], power: float) -> Score:
    """Return a score, and its tie-breakers, divided by the cost of the weight's layer to a power."""

    def of(block: Block) -> Tensor:
        if block.layer.name not in costs:
            raise ValueError(f"costs has no {block.layer.name!r}; it must name every prunable weight")
        return score.of(block) / costs[block.layer.name] ** power

    ties = None if score.ties is None else per_cost(score.ties, costs, power)
    return Score(f"{score.name} per cost", of, score.needs_gradient, ties)


@dataclass(frozen=True)
class PerCost(fggp.FGGP):
    """FGGP whose two steps rank by score per cost.

    Args:
        rate: as FGGP's.
        costs: what each weight of a layer costs, in any unit, by the name of its parameter.
        power: of the cost, in [0, 1]; 0 is FGGP.
    """

    name = "per-cost"
    costs: Mapping[str, float] = field(default_factory=dict)
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, cost in self.costs.items():
            if not 0 < cost < math.inf:
                raise ValueError(f"costs has {cost!r} for {name!r}; a cost must be a number above 0")

    def chain(self, now: fggp.Update) -> Sequence[fggp.TopK]:
        return [
            fggp.TopK(per_cost(gradient, self.costs, self.power), candidates(self.rate, now)),
            fggp.TopK(per_cost(magnitude, self.costs, self.power), now.excess),
        ]


def _measured() -> Mapping[str, float]:
    """Return the costs in the current folder.

    Raises:
        FileNotFoundError: there are none.
    """
    if not MEASURED.exists():
        raise FileNotFoundError(
            f"{MEASURED} is not in {Path.cwd()}; experiments/per_nanosecond/costs.py MODEL writes it"
        )
    costs: Mapping[str, float] = json.loads(MEASURED.read_text(encoding="utf-8"))["nanoseconds"]
    return costs


@dataclass(frozen=True)
class PerNanosecond(PerCost):
    """By score per nanosecond, as measured."""

    name = "per-nanosecond"
    costs: Mapping[str, float] = field(default_factory=_measured)


@dataclass(frozen=True)
class PerRootNanosecond(PerNanosecond):
    """By score per square root of the nanoseconds.

    The loss rises by about the square of a small weight that is removed. So θ² per nanosecond is what time buys.
    """

    name = "per-root-nanosecond"
    power: float = 0.5


@dataclass(frozen=True)
class PerFourthRootNanosecond(PerNanosecond):
    """By score per fourth root of the nanoseconds."""

    name = "per-fourth-root-nanosecond"
    power: float = 0.25
