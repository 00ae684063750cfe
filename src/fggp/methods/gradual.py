"""Gradual pruning methods: FGGP, and the chains that its paper compares it with.

Notation of the paper: θ is a weight, g its gradient. An update at step t prunes N_p = N_{t−Δt} − N_t of the N_{t−Δt}
active weights (``now.excess`` of ``now.active``). `candidates` is the quota K = max(N_p, ⌊r·N_{t−Δt}⌋) of a first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fggp.methods.base import Method, Update, candidates, check_share, cosine
from fggp.scores import gradient, magnitude, random, saliency
from fggp.selection.chains import TopK


@dataclass(frozen=True)
class FGGP(Method):
    """Fixed-rate gradient-first gradual pruning (Zhu, Bezek & Goksel 2024, arXiv 2411.05500).

    1. Of the active weights, take the K with the smallest |g|. This step spares weights with a large gradient. The
       paper's argument: they have not converged, so their magnitude says little yet.
    2. Of these K, prune the N_p with the smallest |θ|.

    Args:
        rate: r, the share of the active weights that step 1 takes; fixed over training. 1 is magnitude pruning
            (`GMP`), 0 is gradient pruning (`GradientOnly`).
    """

    name: ClassVar[str] = "fggp"
    rate: float = 0.5

    def __post_init__(self) -> None:
        check_share("rate", self.rate)

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(gradient, candidates(self.rate, now)), TopK(magnitude, now.excess)]


@dataclass(frozen=True)
class MagnitudeFirst(Method):
    """FGGP with its steps in the other order: take the K smallest |θ|, then prune the N_p smallest |g| of them.

    Args:
        rate: r, as in `FGGP`.
    """

    name: ClassVar[str] = "magnitude-first"
    rate: float = 0.5

    def __post_init__(self) -> None:
        check_share("rate", self.rate)

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(magnitude, candidates(self.rate, now)), TopK(gradient, now.excess)]


@dataclass(frozen=True)
class GradientFirstAnnealed(Method):
    """`FGGP` with a rate that falls from ``start`` to ``end`` by a cosine over the pruning phase.

    Args:
        start: the rate r at the beginning of the pruning phase: a share in [0, 1], not a step.
        end: the rate r at its end.
    """

    name: ClassVar[str] = "gradient-first-annealed"
    start: float = 0.5
    end: float = 0.005

    def __post_init__(self) -> None:
        check_share("start", self.start)
        check_share("end", self.end)

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        rate = cosine(self.start, self.end, now.progress)
        return [TopK(gradient, candidates(rate, now)), TopK(magnitude, now.excess)]


@dataclass(frozen=True)
class MagnitudeFirstAnnealed(Method):
    """`MagnitudeFirst` with a rate that falls from ``start`` to ``end`` by a cosine over the pruning phase.

    Args:
        start: the rate r at the beginning of the pruning phase: a share in [0, 1], not a step.
        end: the rate r at its end.
    """

    name: ClassVar[str] = "magnitude-first-annealed"
    start: float = 0.5
    end: float = 0.005

    def __post_init__(self) -> None:
        check_share("start", self.start)
        check_share("end", self.end)

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        rate = cosine(self.start, self.end, now.progress)
        return [TopK(magnitude, candidates(rate, now)), TopK(gradient, now.excess)]


@dataclass(frozen=True)
class GMP(Method):
    """Gradual magnitude pruning (Zhu & Gupta 2017, arXiv 1710.01878): prune the N_p smallest |θ|."""

    name: ClassVar[str] = "gmp"

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(magnitude, now.excess)]


@dataclass(frozen=True)
class GradientOnly(Method):
    """Gradient pruning: prune the N_p smallest |g|."""

    name: ClassVar[str] = "gradient-only"

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(gradient, now.excess)]


@dataclass(frozen=True)
class Taylor(Method):
    """Prune the N_p smallest |θ·g|: the weights whose removal changes the loss least, to first order."""

    name: ClassVar[str] = "taylor"

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(saliency, now.excess)]


@dataclass(frozen=True)
class Random(Method):
    """Prune N_p weights at random: the baseline that a method must beat."""

    name: ClassVar[str] = "random"

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(random(now.seed, now.step), now.excess)]
