"""The interface of a pruning method: a chain of Top-K steps at every update, and optionally an exchange of weights."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Number, Real
from typing import Any, ClassVar

from fggp.selection.chains import Exchange, TopK
from fggp.weights.averages import Average


@dataclass(frozen=True)
class Update:
    """The numbers of an update, from which a method makes its chain.

    Args:
        step: the optimizer step t.
        active: the number of active weights before the update, N_{t−Δt}.
        excess: the number of weights to prune, N_p = N_{t−Δt} − N_t.
        progress: how far through the pruning phase t lies, in [0, 1].
        seed: the pruner's seed.

    With ``scope="layer"`` the counts are those of one layer.
    """

    step: int
    active: int
    excess: int
    progress: float
    seed: int


class Method(ABC):
    """A way to choose the weights that an update prunes. Subclasses are frozen dataclasses; see `fggp.methods`."""

    name: ClassVar[str]
    """The method's name in tables, files and on the command line."""

    constant: ClassVar[bool] = False
    """Whether the sparsity is constant: training starts at the final sparsity, unless ``init_sparsity`` is given."""

    @abstractmethod
    def chain(self, now: Update) -> Sequence[TopK]:
        """The Top-K steps of an update, ``now``; the quota of the last one is ``now.excess``."""

    def exchange(self, now: Update) -> Exchange | None:
        """The weights to drop and regrow in each layer after the chain has pruned; by default none."""
        return None

    @classmethod
    def regrows(cls) -> bool:
        """Whether it has an exchange: weights that it has pruned may be used again."""
        return cls.exchange is not Method.exchange

    def averages(self) -> Sequence[Average]:
        """The running averages of gradients that the method's scores read; by default none.

        The pruner updates them at every step until the last update, in one pass over the gradients per average. It
        stores them in its state.
        """
        return ()

    def last_update(self, end: int) -> int:
        """The last step at which the masks may change; by default the ``end`` of the pruning phase.

        Raises:
            ValueError: ``end`` contradicts the method's settings.
        """
        return end

    def settings(self) -> dict[str, Any]:
        """The method's hyper-parameters by name."""
        return settings_of(self)


def settings_of(method: object) -> dict[str, Any]:
    """The fields of a dataclass. NumPy numbers become plain ones, which ``weights_only=True`` can load."""
    found: dict[str, Any] = {}
    if dataclasses.is_dataclass(method) and not isinstance(method, type):
        found = dataclasses.asdict(method)
    return {name: v.item() if isinstance(v, Number) and hasattr(v, "item") else v for name, v in found.items()}


def checked_chain(method: Method, now: Update) -> Sequence[TopK]:
    """A method's chain for an update.

    Raises:
        ValueError: the chain does not end with exactly ``now.excess`` weights.
    """
    chain = method.chain(now)
    quotas = [now.active, *(step.quota for step in chain)]
    if quotas[-1] != now.excess or quotas != sorted(quotas, reverse=True):
        raise ValueError(
            f"method {method.name!r} has quotas {quotas[1:]}: they must start at {now.active} or less, the number of "
            f"active weights, never grow, and end at {now.excess}, the number to prune"
        )
    return chain


def candidates(rate: float, now: Update) -> int:
    """The number of candidates: the quota K of a chain's first step.

    It is ⌊r·N_{t−Δt}⌋, the share ``rate`` of the active weights, but at least the N_p to prune.
    """
    return max(now.excess, math.floor(rate * now.active))


def cosine(start: float, end: float, progress: float) -> float:
    """Anneal from ``start`` to ``end`` by half a cosine as progress goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def check_share(name: str, value: Any) -> None:
    """Refuse a value that is not a share of the active weights.

    Raises:
        TypeError: it is no number.
        ValueError: it lies outside [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r} must be a number in [0, 1]")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{name}={value!r} must lie in [0, 1]: a share of the active weights")
