"""Shares of training as optimizer steps, for trainers that know how long training lasts."""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

UPDATES = 31
"""How many mask updates the literature's protocol makes: one every 1,000 steps, over 80 epochs of CIFAR-10."""


class Steps(NamedTuple):
    """The arguments of the Pruner that say when: ``Pruner(…, **steps._asdict())``."""

    begin: int
    end: int
    every: int


def check_shares(begin: Any, end: Any, every: Any) -> None:
    """Refuse wrong shares of training, before its length is known.

    Raises:
        TypeError: begin or end is no number, or every is neither an int nor None.
        ValueError: not 0 <= begin < end <= 1, or every is below 1.
    """
    for name, value in {"begin": begin, "end": end}.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name}={value!r} must be a number in [0, 1]: a share of training")
        if not 0 <= float(value) <= 1:
            raise ValueError(f"{name}={value!r} must lie in [0, 1]: it is a share of training, not a step or an epoch")
    if not begin < end:
        raise ValueError(f"end={end!r} must be greater than begin={begin!r}")
    if every is not None and (isinstance(every, bool) or not isinstance(every, int)):
        raise TypeError(f"every={every!r} must be an int, a number of optimizer steps, or None")
    if every is not None and every < 1:
        raise ValueError(f"every={every} must be at least 1: optimizer steps from one update to the next")


def steps_of_shares(total: int, begin: float, end: float, every: int | None) -> Steps:
    """Turn shares of training into optimizer steps.

    Args:
        total: the optimizer steps of the training; at least 1.
        begin: the share of training from which the schedule counts.
        end: the share of training from which the final sparsity holds.
        every: optimizer steps between two updates; None for about 31 updates from begin to end.

    Returns:
        Steps with 0 <= begin < end <= total, rounded to the nearest step. Training that is too short to tell begin
        from end has one step between them.

    Raises:
        TypeError, ValueError: the shares are wrong, see `check_shares`, or ``total`` is no int above 0.
    """
    check_shares(begin, end, every)
    if isinstance(total, bool) or not isinstance(total, int):
        raise TypeError(f"total={total!r} must be an int: the optimizer steps of the training")
    if total < 1:
        raise ValueError(f"total={total} must be at least 1: the optimizer steps of the training")
    first = min(round(begin * total), total - 1)
    last = max(round(end * total), first + 1)
    return Steps(first, last, max(1, (last - first) // UPDATES) if every is None else every)
