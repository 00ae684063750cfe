"""Gradual pruning methods: the rows of the table of chains in FGGP's paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fggp.methods.base import Method, Update, candidates, check_share, cosine
from fggp.scores import gradient, magnitude, random, saliency
from fggp.selection.chains import TopK


@dataclass(frozen=True)
class FGGP(Method):
    """Fixed-rate gradient-first gradual pruning: gradient first, magnitude next.

    A weight with a large gradient has not converged, so its magnitude says little yet: it is spared.

    Args:
        rate: r, the share of the active weights, those with the smallest gradients, among which the magnitude
            decides; fixed over training. 1 is magnitude pruning (`GMP`), 0 is gradient pruning (`GradientOnly`).
    """

    name: ClassVar[str] = "fggp"
    rate: float = 0.5

    def __post_init__(self) -> None:
        check_share("rate", self.rate)

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(gradient, candidates(self.rate, now)), TopK(magnitude, now.excess)]


@dataclass(frozen=True)
class MagnitudeFirst(Method):
    """FGGP with its two steps exchanged: magnitude first, gradient next, at a fixed rate."""

    name: ClassVar[str] = "magnitude-first"
    rate: float = 0.5

    def __post_init__(self) -> None:
        check_share("rate", self.rate)

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(magnitude, candidates(self.rate, now)), TopK(gradient, now.excess)]


@dataclass(frozen=True)
class GradientFirstAnnealed(Method):
    """FGGP with a rate that falls by a cosine from ``start`` to ``end`` over the pruning phase."""

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
    """`MagnitudeFirst` with a rate that falls by a cosine from ``start`` to ``end`` over the pruning phase."""

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
    """Gradual magnitude pruning (Zhu & Gupta 2017, arXiv 1710.01878): the smallest |θ| go."""

    name: ClassVar[str] = "gmp"

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(magnitude, now.excess)]


@dataclass(frozen=True)
class GradientOnly(Method):
    """The smallest |g| go."""

    name: ClassVar[str] = "gradient-only"

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(gradient, now.excess)]


@dataclass(frozen=True)
class Taylor(Method):
    """The smallest |θ·g| go: those whose removal changes the loss least, to first order."""

    name: ClassVar[str] = "taylor"

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(saliency, now.excess)]


@dataclass(frozen=True)
class Random(Method):
    """Any may go: the control that a method must beat."""

    name: ClassVar[str] = "random"

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(random(now.seed, now.step), now.excess)]
