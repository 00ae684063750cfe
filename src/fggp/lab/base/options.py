"""What the options of all commands share: help for a default that follows from other options, and checks of values."""

from typing import Any

import tyro

from fggp.lab.base.errors import UsageError


def default_shown_as(default: str, metavar: str) -> Any:
    """Annotate an option: its help shows this default, and ``metavar`` for its value."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def require(name: str, value: object, valid: bool, expected: str) -> None:
    """Refuse an option's value.

    Raises:
        UsageError: ``valid`` is false; the message names the option, the value and what is ``expected``.
    """
    if not valid:
        raise UsageError(f"{name} is {value!r}; it must be {expected}")
