"""What the functions of several families need: operands, lists by dimension, and types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fggp.ship.network.description import Inexpressible
from fggp.ship.network.nodes import Operand, Writer, file_dtype


def operand(w: Writer, x: Any, name: str = "constant") -> Operand:
    """A value or a constant tensor as an operand."""
    if isinstance(x, Operand):
        return x
    if isinstance(x, Tensor):
        return w.tensor(x, name)
    raise Inexpressible(f"its {name} is {x!r:.40}, and not a tensor")


def optional(w: Writer, x: Any, name: str) -> Operand | None:
    """An operand, or None for None."""
    return None if x is None else operand(w, x, name)


def floats(w: Writer, x: Any, name: str = "input") -> Operand:
    """An operand that must be float32."""
    found = operand(w, x, name)
    if found.dtype != torch.float32:
        raise Inexpressible(f"its {name} is {found.dtype}, and the file's operator takes float32")
    return found


def by_dimension(x: Any, count: int) -> list[int]:
    """A number for each spatial dimension, from one for all or a list."""
    numbers = [x] if isinstance(x, int) else list(x)
    if len(numbers) == 1:
        numbers *= count
    if len(numbers) != count or not all(isinstance(number, int) for number in numbers):
        raise Inexpressible(f"{numbers} are not {count} numbers")
    return numbers


def number(x: Any, name: str) -> Any:
    """A Python number, which must not depend on a free size."""
    if not isinstance(x, (bool, int, float)):
        raise Inexpressible(f"its {name} is {x!r:.40}; it must be a number")
    return x


def result_dtype(call: Any) -> torch.dtype:
    """The file's dtype of a call's result."""
    return file_dtype(call.output.dtype)


def sizes_of(call: Any) -> Sequence[int | str]:
    """The shape of a call's result."""
    return call.output.sizes  # type: ignore[no-any-return]
