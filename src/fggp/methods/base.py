"""What a pruning method is: a chain of Top-K steps, and for some an exchange of weights, at every update."""

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
    """What a method knows of an update.

    Args:
        step: the optimizer step t.
        active: how many weights are active before it, N_{t−Δt}.
        excess: how many active weights must go, N_p = N_{t−Δt} − N_t.
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
    """A way to choose the weights that an update prunes. Subclasses are frozen dataclasses; see `fggp.methods`."""

    name: ClassVar[str]
    """How tables, files and the command line call the method."""

    constant: ClassVar[bool] = False
    """Whether the method trains at its final sparsity from the start, unless ``init_sparsity`` is given."""

    @abstractmethod
    def chain(self, now: Update) -> Sequence[TopK]:
        """The Top-K steps of an update, the last one's quota being ``now.excess``."""

    def exchange(self, now: Update) -> Exchange | None:
        """What is dropped and regrown in each layer when the chain has pruned; by default nothing."""
        return None

    def averages(self) -> Sequence[Average]:
        """What the method's scores need to know of earlier steps' gradients; by default nothing.

        The pruner keeps it up to date at every step, a pass over the weights each, until masks change no more, and
        stores it in its state.
        """
        return ()

    def last_update(self, end: int) -> int:
        """The last step at which the masks may change: by default the ``end`` of the pruning phase.

        Raises:
            ValueError: ``end`` does not fit the method's own settings.
        """
        return end

    def settings(self) -> dict[str, Any]:
        """The method's hyper-parameters by name."""
        return settings_of(self)


def settings_of(method: object) -> dict[str, Any]:
    """The fields of a dataclass, as plain numbers: a state with NumPy's would not load with weights_only=True."""
    found: dict[str, Any] = {}
    if dataclasses.is_dataclass(method) and not isinstance(method, type):
        found = dataclasses.asdict(method)
    return {name: v.item() if isinstance(v, Number) and hasattr(v, "item") else v for name, v in found.items()}


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


def candidates(rate: float, now: Update) -> int:
    """The quota K of a first step: ⌊r·N_{t−Δt}⌋ of the active weights, but never fewer than must go."""
    return max(now.excess, math.floor(rate * now.active))


def cosine(start: float, end: float, progress: float) -> float:
    """Anneal from ``start`` to ``end`` by half a cosine as progress goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def check_share(name: str, value: Any) -> None:
    """Refuse what is not a share of the active weights."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r} must be a number in [0, 1]")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{name}={value!r} must lie in [0, 1]: a share of the active weights")
