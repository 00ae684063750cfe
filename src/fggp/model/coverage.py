"""How much of a model is pruned, and what is left out and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fggp.model.kinds import Kind, known_parameters
from fggp.weights.prunable import Prunable

ENOUGH = 0.5
"""The share of a model's parameters that should be prunable: with less, the sparsity says little about the model."""


@dataclass(frozen=True)
class LeftOut:
    """Parameters that are not pruned, for one reason.

    Args:
        reason: why, in a few words.
        count: how many numbers they are.
        names: their names.
    """

    reason: str
    count: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join(self.names[:2]) + (", …" if len(self.names) > 2 else "")
        return f"{self.reason}: {self.count:,} in {len(self.names)} ({names})"


@dataclass(frozen=True)
class Coverage:
    """How much of a model can be pruned.

    Args:
        total: the number of all parameters; each tied one counts once.
        prunable: how many of them the Pruner can prune.
        left_out: the others by reason, the most numbers first.
    """

    total: int
    prunable: int
    left_out: tuple[LeftOut, ...]

    @property
    def share(self) -> float:
        """The prunable share of all parameters; 0 for a model without any."""
        return self.prunable / self.total if self.total else 0.0

    def lines(self, most: int = 8) -> list[str]:
        """The coverage in a few lines of text, ``most`` at most (2 or more)."""
        head = f"{self.share:.1%} of the model's {self.total:,} parameters can be pruned"
        if not self.left_out:
            return [head]
        shown = self.left_out if len(self.left_out) < most else self.left_out[: most - 2]
        rest = self.left_out[len(shown) :]
        lines = [f"{head}; left out:", *(f"  {group}" for group in shown)]
        if rest:
            lines.append(f"  {len(rest)} more reasons: {sum(group.count for group in rest):,}")
        return lines

    def warning(self) -> str | None:
        """What to say if less than half of the model can be pruned; None if that much can.

        It is not meant for users who chose the weights themselves, with ``include`` or ``exclude``.
        """
        if self.share >= ENOUGH or not self.left_out:
            return None
        main = self.left_out[0]
        return (
            f"only {self.share:.1%} of the model's {self.total:,} parameters can be pruned, so its sparsity is less "
            f"than the one you ask for. Most of the rest is: {main}. Name what else is to be pruned with include= "
            f"(it replaces the default choice), or this choice, if it is what you want"
        )


def coverage(model: nn.Module, weights: Sequence[Prunable]) -> Coverage:
    """Count what is pruned and what is not.

    Args:
        model: the model.
        weights: those of its weights that are pruned (`fggp.model.find.find_prunable`).
    """
    pruned = {id(w.parameter) for w in weights}
    groups: dict[str, tuple[int, list[str]]] = {}
    total = prunable = 0
    for known in known_parameters(model):
        parameter = known.weight.parameter
        if isinstance(parameter, nn.parameter.UninitializedParameter):  # frozen; it has no size yet
            continue
        size = parameter.numel()
        total += size
        if id(parameter) in pruned:
            prunable += size
        elif size:
            reason = _reason(known.kind, known.by)
            count, names = groups.get(reason, (0, []))
            groups[reason] = count + size, [*names, known.weight.name]
    left_out = [LeftOut(reason, count, tuple(names)) for reason, (count, names) in groups.items()]
    return Coverage(total, prunable, tuple(sorted(left_out, key=lambda group: -group.count)))


def _reason(kind: Kind, by: str) -> str:
    if kind is Kind.DEFAULT:
        return "not chosen by include and exclude"
    return f"{kind.value} ({by})" if kind is Kind.COMPUTED else kind.value
