"""What a trainer of either Lightning package has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def callbacks(trainer: Trainer) -> list[Any]:
    """Its callbacks."""
    found: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    return found


def of_kind(name: str, trainer: Trainer) -> list[Any]:
    """The callbacks of a class, by its name: each of the two packages has its own class of this name."""
    return [c for c in callbacks(trainer) if any(kind.__name__ == name for kind in type(c).__mro__)]
