"""Limits, and what a network costs beside them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        bytes: size of its file.
        ms: of one batch, on this machine.
    """

    bytes: int
    ms: float


@dataclass(frozen=True)
class Wishes:
    """Limits; None where there is none.

    Attributes:
        drop: percent points of validation accuracy below dense networks.
        ms: milliseconds for a batch.
        bytes: of the small file.
    """

    drop: float | None
    ms: float | None
    bytes: int | None

    @property
    def of_cost(self) -> bool:
        """Whether time or size is limited."""
        return self.ms is not None or self.bytes is not None

    def met_by(self, cost: Cost) -> bool:
        """Whether a network's time and size are within the limits."""
        return not self.missed(cost)

    def missed(self, cost: Cost) -> list[str]:
        """Return the options of time and size that a network does not meet, each with what it needs."""
        found = []
        if self.ms is not None and cost.ms > self.ms:
            found.append(f"latency is {ms_text(self.ms)}, but it takes {ms_text(cost.ms)}")
        if self.bytes is not None and cost.bytes > self.bytes:
            found.append(f"size is {bytes_text(self.bytes)}, but its file has {bytes_text(cost.bytes)}")
        return found

    def __str__(self) -> str:
        texts = [] if self.drop is None else [f"at most {points(self.drop)} below dense"]
        texts += [] if self.ms is None else [f"at most {ms_text(self.ms)}"]
        texts += [] if self.bytes is None else [f"at most {bytes_text(self.bytes)}"]
        return ", ".join(texts)


def bytes_text(count: float) -> str:
    """Return a size as people write it, to four digits."""
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.4g} {unit}"
    return f"{count:g} B"


def ms_text(ms: float) -> str:
    """Return a time as people write it, to three digits."""
    return f"{ms:.3g} ms" if ms < 1000 else f"{ms / 1000:.3g} s"


def points(drop: float) -> str:
    """Return a difference of percentages as people write it."""
    return f"{drop:g} point" if drop == 1 else f"{drop:g} points"


def percent(share: float) -> str:
    """Return a share as a percentage, without zeros at its end."""
    return f"{100 * share:.4g} %"
