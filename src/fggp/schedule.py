"""The number of active weights at step t (Zhu & Gupta 2017, arXiv 1710.01878), in total and in each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real

Curve = Callable[[float], float]
"""Maps progress through the pruning phase (0 to 1) to the share still to prune (1 to 0)."""


def cubic(progress: float) -> float:
    """(1 − p)³: prune fast at first, while many weights are redundant, and then ever more slowly."""
    return (1 - progress) ** 3


def linear(progress: float) -> float:
    """1 − p: prune the same number of weights at every update."""
    return 1 - progress


CURVES: dict[str, Curve] = {"cubic": cubic, "linear": linear}


@dataclass(frozen=True)
class Schedule:
    """The sparsity s_t at every optimizer step t, and the steps at which the masks change.

    s_t = s_fin + (s_ini − s_fin)·curve((t − t_ini)/(t_fin − t_ini)) between t_ini = ``begin`` and t_fin = ``end``,
    s_ini before and s_fin after. Masks change at begin + every, begin + 2·every, … and at ``end`` itself, so that
    the final sparsity is met even if ``every`` does not divide the phase.

    Args:
        sparsity: the final sparsity s_fin, a share of the prunable weights, in [init_sparsity, 1).
        begin: the step t_ini from which the schedule counts; 0 or more, and below ``end``. The first update is at
            begin + every, or at ``end`` if that is earlier.
        end: the step t_fin from which the final sparsity holds.
        every: optimizer steps between two updates, Δt; at least 1.
        init_sparsity: the sparsity s_ini to start from, in [0, 1).
        curve: the share of s_fin − s_ini still to prune at a progress in [0, 1].
        last: the last step at which masks may change. By default ``end``; later for methods that continue to exchange
            weights at constant sparsity; 0 for methods that never update.

    Raises:
        TypeError, ValueError: an argument has a wrong type, or lies outside its range.
    """

    sparsity: float
    begin: int
    end: int
    every: int
    init_sparsity: float = 0.0
    curve: Curve = cubic
    last: int | None = None

    def __post_init__(self) -> None:
        for name in ("sparsity", "init_sparsity"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), Real):
                raise TypeError(f"{name}={getattr(self, name)!r} must be a number in [0, 1)")
        if not callable(self.curve):
            raise TypeError(f"schedule={self.curve!r} must be a function of the progress in [0, 1], like fggp.cubic")
        outside = [p / 100 for p in range(101) if not 0 <= self.curve(p / 100) <= 1]
        if outside:
            raise ValueError(
                f"schedule={self.curve!r} gives {self.curve(outside[0])} at a progress of {outside[0]}; "
                f"it must give the share still to prune, in [0, 1]"
            )
        if not 0 <= self.init_sparsity < 1:
            raise ValueError(f"init_sparsity={self.init_sparsity!r} must lie in [0, 1)")
        if not self.init_sparsity <= self.sparsity < 1:
            raise ValueError(
                f"sparsity={self.sparsity!r} must lie in [init_sparsity, 1) = [{self.init_sparsity!r}, 1); "
                f"0.95 prunes 95 % of the weights"
            )
        for name in ("begin", "end", "every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}={value!r} must be an int: a number of optimizer steps")
        if self.begin < 0:
            raise ValueError(f"begin={self.begin} must be 0 or more: the optimizer step from which the schedule counts")
        if self.end <= self.begin:
            raise ValueError(f"end={self.end} must be greater than begin={self.begin}")
        if self.every < 1:
            raise ValueError(f"every={self.every} must be at least 1: optimizer steps from one update to the next")

    def progress(self, step: int) -> float:
        """How far through the pruning phase a step lies, from 0 (up to ``begin``) to 1 (from ``end``)."""
        return min(1.0, max(0.0, (step - self.begin) / (self.end - self.begin)))

    def sparsity_at(self, step: int) -> float:
        """s_t, the sparsity that an update at this step establishes."""
        # Exact at both ends: the curve and the sum may round.
        if step <= self.begin:
            return self.init_sparsity
        if step >= self.end:
            return self.sparsity
        return self.sparsity + (self.init_sparsity - self.sparsity) * self.curve(self.progress(step))

    def active_at(self, step: int, total: int) -> int:
        """N_t, the number of ``total`` prunable weights that are active after an update at this step."""
        return active_count(self.sparsity_at(step), total)

    @property
    def last_update(self) -> int:
        """The last step at which masks may change."""
        return self.end if self.last is None else self.last

    def is_update(self, step: int) -> bool:
        """Whether an update is due at this step."""
        since = step - self.begin
        return 0 < step <= self.last_update and (step == self.end or (since > 0 and since % self.every == 0))


def active_count(sparsity: float, total: int) -> int:
    """The number of active weights that a sparsity stands for: round((1 − s)·N), halves to even."""
    return round((1 - sparsity) * total)


def apportion(
    total: int, shares: Sequence[int | Fraction], caps: Sequence[int], floors: Sequence[int] | None = None
) -> list[int]:
    """Split a number of weights over layers in proportion to ``shares``, none above its cap or below its floor.

    A layer that would exceed its cap gets its cap, and the rest is split over the other layers, until no layer exceeds
    its cap. Rounding up goes to the largest remainders, earlier layers first, so the parts add up to ``total``. Layers
    that would then be below their floors get these, and the rest is split anew.

    Args:
        total: the number to split; at least the sum of ``floors``, at most the sum of ``caps``.
        shares: a positive proportion for each layer.
        caps: the maximum of each layer.
        floors: the minimum of each layer, at most its cap; by default 0.

    Raises:
        ValueError: ``total`` lies outside [sum of ``floors``, sum of ``caps``].
    """
    floors = floors or [0] * len(caps)
    if not sum(floors) <= total <= sum(caps):
        raise ValueError(f"total={total} must lie in [{sum(floors)}, {sum(caps)}], the sums of floors and caps")
    parts = list(floors)
    above = list(range(len(caps)))  # the layers that are not at their floor
    while True:
        left = total - sum(floors) + sum(floors[i] for i in above)
        split = dict(zip(above, _apportion(left, [shares[i] for i in above], [caps[i] for i in above]), strict=True))
        low = [i for i in above if split[i] < floors[i]]
        if not low:
            return [split.get(i, part) for i, part in enumerate(parts)]
        above = [i for i in above if i not in set(low)]


def _apportion(total: int, shares: Sequence[int | Fraction], caps: Sequence[int]) -> list[int]:
    """`apportion` without floors."""
    parts = list(caps)
    free = [i for i, cap in enumerate(caps) if cap > 0]
    left = total - sum(cap for i, cap in enumerate(caps) if i not in set(free))
    while free:
        unit = Fraction(left) / sum(shares[i] for i in free)
        full = [i for i in free if unit * shares[i] >= caps[i]]
        if not full:
            break
        left -= sum(caps[i] for i in full)
        free = [i for i in free if i not in set(full)]
    if free:
        quotas = {i: unit * shares[i] for i in free}
        for i in free:
            parts[i] = int(quotas[i])
        short = left - sum(parts[i] for i in free)
        for i in sorted(free, key=lambda i: (int(quotas[i]) - quotas[i], i))[:short]:
            parts[i] += 1
    return parts
