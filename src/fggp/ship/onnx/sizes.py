"""Sizes of tensors as sympy's expressions, in which free sizes are symbols, and their texts for the network file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from types import CodeType
from typing import Any, TypeAlias

import sympy
from sympy.printing.str import StrPrinter

Size: TypeAlias = "int | sympy.Expr"
"""A number, or an expression of free sizes."""


def free_size(name: str) -> sympy.Symbol:
    """The symbol of a free size."""
    return sympy.Symbol(name, integer=True, positive=True)


def simplest(size: Any) -> Size:
    """A whole number as an int, or the expression."""
    if isinstance(size, sympy.Expr):
        return int(size) if size.is_Integer else size
    return int(size)


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes."""
    result: Any = 1
    for size in sizes:
        result = result * size
    return simplest(result)


@cache
def quotient(a: Size, b: Size) -> Size:
    """a / b, rounded down."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    ratio = sympy.sympify(a) / b
    if sympy.fraction(ratio)[1] != 1:
        ratio = sympy.cancel(ratio)
    return simplest(sympy.floor(ratio))


@cache
def quotient_up(a: Size, b: Size) -> Size:
    """a / b, rounded up."""
    if isinstance(a, int) and isinstance(b, int):
        return -(-a // b)
    return simplest(sympy.ceiling(sympy.sympify(a) / b))


@cache
def larger(a: Size, b: Size) -> Size:
    """The larger of two sizes."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    # Which one is larger for all sizes, sympy would look for too long.
    return simplest(sympy.Max(a, b, evaluate=bool(sympy.sympify(a).is_Symbol or sympy.sympify(b).is_Symbol)))


@cache
def smaller(a: Size, b: Size) -> Size:
    """The smaller of two sizes."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return simplest(sympy.Min(a, b, evaluate=bool(sympy.sympify(a).is_Symbol or sympy.sympify(b).is_Symbol)))


@cache
def equal(a: Size, b: Size) -> bool:
    """Whether two sizes are the same for all free sizes, as far as that is found."""
    return a == b or (not (isinstance(a, int) and isinstance(b, int)) and sympy.expand(sympy.sympify(a) - b) == 0)


def evaluated(size: Size, free: Mapping[str, int]) -> int:
    """The number that a size is, from those of the free sizes by name."""
    return size if isinstance(size, int) else int(eval(_code(size), _FUNCTIONS, dict(free)))


_FUNCTIONS = {"__builtins__": {}, "Max": max, "Min": min}


@cache
def _code(size: Size) -> CodeType:
    return compile(str(text(size)), "size", "eval")


class _Printer(StrPrinter):  # type: ignore[misc]
    """Expressions as `fggp.ship.network.sizes` reads them: with // for what is rounded."""

    def _print_floor(self, expression: Any) -> str:
        above, below = sympy.fraction(sympy.together(expression.args[0]))
        return f"(({self._print(above)})//({self._print(below)}))"

    def _print_ceiling(self, expression: Any) -> str:
        above, below = sympy.fraction(sympy.together(expression.args[0]))
        return f"(({self._print(above + below - 1)})//({self._print(below)}))"


@cache
def text(size: Size) -> int | str:
    """A size as a graph's Values have it."""
    return size if isinstance(size, int) else _Printer().doprint(size)
