"""Pruning methods: each says which chain of Top-K steps chooses the weights that go at an update.

FGGP's paper (Zhu, Bezek & Goksel 2024, arXiv 2411.05500) sees gradual pruning methods as one process, a chain of
steps, each keeping the quota of weights that score lowest among those the step before it left; what the last step
leaves is pruned. A method is one `chain`, so a new one is a few lines:

    @dataclass(frozen=True)
    class SaliencyFirst(fggp.Method):
        name = "saliency-first"

        def chain(self, now):
            return [TopK(saliency, candidates(0.5, now)), TopK(magnitude, now.excess)]
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Number, Real
from typing import Any, ClassVar

from fggp.scores import gradient, magnitude, random, saliency
from fggp.select import TopK


@dataclass(frozen=True)
class Update:
    """What a method knows of an update.

    Args:
        step: the optimizer step t.
        active: how many weights are active before it, N_{t−Δt}.
        excess: how many active weights must go, N_p = N_{t−Δt} − N_t; more than 0.
        progress: how far through the pruning phase t lies, in [0, 1].
        seed: the pruner's own seed.

    Under ``scope="layer"`` the counts are those of one layer.
    """

    step: int
    active: int
    excess: int
    progress: float
    seed: int


class Method(ABC):
    """A way to choose the weights that an update prunes. Subclasses are frozen dataclasses; see the module's text."""

    name: ClassVar[str]
    """How tables, files and the command line call the method."""

    @abstractmethod
    def chain(self, now: Update) -> Sequence[TopK]:
        """The Top-K steps of an update, the last one's quota being ``now.excess``."""

    def settings(self) -> dict[str, Any]:
        """The method's hyper-parameters by name."""
        found: dict[str, Any] = dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {}
        # Plain numbers: a state with NumPy's would not load with weights_only=True.
        return {name: v.item() if isinstance(v, Number) and hasattr(v, "item") else v for name, v in found.items()}


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
        _check_share("rate", self.rate)

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(gradient, candidates(self.rate, now)), TopK(magnitude, now.excess)]


@dataclass(frozen=True)
class MagnitudeFirst(Method):
    """FGGP with its two steps exchanged: magnitude first, gradient next, at a fixed rate."""

    name: ClassVar[str] = "magnitude-first"
    rate: float = 0.5

    def __post_init__(self) -> None:
        _check_share("rate", self.rate)

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(magnitude, candidates(self.rate, now)), TopK(gradient, now.excess)]


@dataclass(frozen=True)
class GradientFirstAnnealed(Method):
    """FGGP with a rate that falls by a cosine from ``start`` to ``end`` over the pruning phase."""

    name: ClassVar[str] = "gradient-first-annealed"
    start: float = 0.5
    end: float = 0.005

    def __post_init__(self) -> None:
        _check_share("start", self.start)
        _check_share("end", self.end)

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
        _check_share("start", self.start)
        _check_share("end", self.end)

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


def candidates(rate: float, now: Update) -> int:
    """The quota K of a first step: ⌊r·N_{t−Δt}⌋ of the active weights, but never fewer than must go."""
    return max(now.excess, math.floor(rate * now.active))


def cosine(start: float, end: float, progress: float) -> float:
    """Anneal from ``start`` to ``end`` by half a cosine as progress goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def checked_chain(method: Method, now: Update) -> Sequence[TopK]:
    """A method's chain for an update; refused where it would not leave exactly ``now.excess`` weights."""
    chain = method.chain(now)
    quotas = [now.active, *(step.quota for step in chain)]
    if quotas[-1] != now.excess or quotas != sorted(quotas, reverse=True):
        raise ValueError(
            f"method {method.name!r} has quotas {quotas[1:]}: they must never grow, from at most {now.active} active "
            f"weights to exactly the {now.excess} that must go"
        )
    return chain


def _check_share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r} must be a number in [0, 1]")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{name}={value!r} must lie in [0, 1]: a share of the active weights")


REGISTRY: dict[str, type[Method]] = {
    m.name: m
    for m in (
        FGGP,
        GMP,
        GradientOnly,
        GradientFirstAnnealed,
        MagnitudeFirst,
        MagnitudeFirstAnnealed,
        Taylor,
        Random,
    )
}
"""The built-in methods by name."""


def resolve(method: Method | str) -> Method:
    """A method from an object or from the lower-case name of a built-in one."""
    if isinstance(method, Method):
        return method
    if isinstance(method, str) and method in REGISTRY:
        return REGISTRY[method]()
    raise ValueError(f"method={method!r} must be a fggp.Method or one of {', '.join(map(repr, REGISTRY))}")
