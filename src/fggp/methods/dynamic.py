"""Methods of dynamic sparse training: drop weights in each layer and regrow the same number in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fggp.methods.base import Method, Update, check_share, cosine
from fggp.scores import gradient, magnitude, random
from fggp.selection.chains import Exchange, TopK


@dataclass(frozen=True)
class GraNet(Method):
    """Gradual pruning with neuroregeneration (Liu et al. 2021, arXiv 2106.10404).

    An update prunes globally by magnitude. Then, in each layer, it drops a share of the active weights, those with the
    smallest magnitudes, and regrows the same number of inactive weights, those with the largest gradients. The share
    falls by a cosine over all of training, and exchanges continue until training ends.

    Args:
        total_steps: optimizer steps of the whole training; at least the ``end`` of the pruning phase.
        start: the share of each layer's active weights exchanged at the first step of training: in [0, 1], not a step.
        end: the share exchanged at the last step of training.
    """

    name: ClassVar[str] = "granet"
    total_steps: int
    start: float = 0.5
    end: float = 0.005

    def __post_init__(self) -> None:
        if isinstance(self.total_steps, bool) or not isinstance(self.total_steps, int) or self.total_steps < 1:
            raise ValueError(
                f"total_steps={self.total_steps!r} must be an int above 0: optimizer steps of all training"
            )
        check_share("start", self.start)
        check_share("end", self.end)

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(magnitude, now.excess)]

    def exchange(self, now: Update) -> Exchange:  # noqa: D102
        share = cosine(self.start, self.end, now.step / self.total_steps)
        return Exchange(share, drop=magnitude, grow=gradient)

    def last_update(self, end: int) -> int:  # noqa: D102
        if self.total_steps < end:
            raise ValueError(
                f"total_steps={self.total_steps} must be at least end={end}: optimizer steps of all training"
            )
        return self.total_steps


@dataclass(frozen=True)
class RigL(Method):
    """Rigging the lottery (Evci et al. 2020, arXiv 1911.11134): constant sparsity, regrowth by gradient.

    Args:
        share: the share of each layer's active weights that is exchanged, at the start. It falls to 0 by a cosine
            until ``end``, which the authors set at three quarters of training.
    """

    name: ClassVar[str] = "rigl"
    constant: ClassVar[bool] = True
    share: float = 0.3

    def __post_init__(self) -> None:
        check_share("share", self.share)

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(magnitude, now.excess)]

    def exchange(self, now: Update) -> Exchange:  # noqa: D102
        return Exchange(cosine(self.share, 0.0, now.progress), drop=magnitude, grow=gradient)


@dataclass(frozen=True)
class SET(Method):
    """Sparse evolutionary training (Mocanu et al. 2018, arXiv 1707.04780): constant sparsity, random regrowth.

    Args:
        share: the share of each layer's active weights that every update exchanges until ``end``.
    """

    name: ClassVar[str] = "set"
    constant: ClassVar[bool] = True
    share: float = 0.3

    def __post_init__(self) -> None:
        check_share("share", self.share)

    def chain(self, now: Update) -> Sequence[TopK]:  # noqa: D102
        return [TopK(magnitude, now.excess)]

    def exchange(self, now: Update) -> Exchange:  # noqa: D102
        return Exchange(self.share, drop=magnitude, grow=random(now.seed, now.step))
