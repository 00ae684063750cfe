"""Sizes: texts of expressions, as Values have them, computed with, and written as docs/network-file.md defines them."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

# A size: a number, or the text of an expression such as "H//2 + 1" in the names of the free sizes.
Size = int | str

_OPERATORS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//"}
_DIVISIONS = frozenset(["FloorDiv", "CleanDiv"])
_REMAINDERS = frozenset(["Mod", "PythonMod"])


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes."""
    result: Size = 1
    for size in sizes:
        result = _combined("*", result, size)
    return result


def added(a: Size, b: Size) -> Size:
    """The sum of two sizes."""
    return _combined("+", a, b)


def multiplied(a: Size, b: Size) -> Size:
    """The product of two sizes."""
    return _combined("*", a, b)


def divided(a: Size, b: int) -> Size:
    """The quotient, rounded down."""
    return a // b if isinstance(a, int) else a if b == 1 else f"({a})//{b}"


def _combined(operator: str, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a + b if operator == "+" else a * b
    neutral = 0 if operator == "+" else 1
    if a == neutral:
        return b
    if b == neutral:
        return a
    if operator == "*" and 0 in (a, b):
        return 0
    return f"({a}) {operator} ({b})"


def expression(size: Size) -> Any:
    """A size as the file writes it: a number, a name, or a list of an operator and sizes.

    Raises:
        ValueError: it has an operator that the file has not.
    """
    return size if isinstance(size, int) else _written(ast.parse(size, mode="eval").body)


def expressions(sizes: Iterable[Size]) -> list[Any]:
    """Several sizes as the file writes them."""
    return [expression(size) for size in sizes]


def _written(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return name
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _written(operand)
            return -inner if isinstance(inner, int) else ["*", inner, -1]
        case ast.BinOp(left=base, op=ast.Pow(), right=ast.Constant(value=int(power))) if power > 0:
            factor = _written(base)
            return _joined("*", [factor] * power)
        case ast.BinOp(left=left, op=ast.Mod(), right=right):
            return _remainder(_written(left), _written(right))
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return _joined(_OPERATORS[type(operator)], [_written(left), _written(right)])
        case ast.Call(func=ast.Name(id=("Max" | "Min") as name), args=args):
            return _joined(name.lower(), [_written(arg) for arg in args])
        case ast.Call(func=ast.Name(id=name), args=[left, right]) if name in _DIVISIONS:
            return ["//", _written(left), _written(right)]
        case ast.Call(func=ast.Name(id=name), args=[left, right]) if name in _REMAINDERS:
            return _remainder(_written(left), _written(right))
        case ast.Call(func=ast.Name(id="TruncToInt" | "FloorToInt"), args=[quotient]):
            return _quotient(quotient, up=False)
        case ast.Call(func=ast.Name(id="CeilToInt"), args=[quotient]):
            return _quotient(quotient, up=True)
        case ast.Call(func=ast.Name(id="Identity"), args=[inner]):
            return _written(inner)
    raise ValueError(f"the size {ast.unparse(node)} cannot be written with +, -, *, //, min and max")


def _joined(operator: str, operands: list[Any]) -> list[Any]:
    """An operation, flat: a first operand of the same operator is taken apart."""
    first = operands[0]
    if isinstance(first, list) and first[0] == operator and operator != "//":
        return [*first, *operands[1:]]
    return [operator, *operands] if len(operands) > 1 else first


def _remainder(a: Any, b: Any) -> list[Any]:
    return ["-", a, ["*", ["//", a, b], b]]


def _quotient(node: ast.expr, *, up: bool) -> Any:
    """A quotient of whole numbers, or a size times a number, rounded; sizes are no less than 0."""
    a, b = _fraction(node)
    if b == 1:
        return a
    return ["//", ["+", a, b, -1], b] if up else ["//", a, b]


def _fraction(node: ast.expr) -> tuple[Any, Any]:
    """A number of sizes that may be no whole one, as numerator and denominator."""
    match node:
        case ast.Call(func=ast.Name(id="ToFloat" | "Identity"), args=[inner]):
            return _fraction(inner)
        case ast.Constant(value=float(number)):
            # 1.3 is meant as 13/10, and its products with sizes are rounded as if it were.
            fraction = Fraction(number).limit_denominator(10**6)
            return fraction.numerator, fraction.denominator
        case ast.Call(func=ast.Name(id="IntTrueDiv" | "FloatTrueDiv"), args=[left, right]):
            (a, b), (c, d) = _fraction(left), _fraction(right)
            return _times(a, d), _times(b, c)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            (a, b), (c, d) = _fraction(left), _fraction(right)
            return _times(a, d), _times(b, c)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            (a, b), (c, d) = _fraction(left), _fraction(right)
            return _times(a, c), _times(b, d)
    return _written(node), 1


def _times(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return b if a == 1 else a if b == 1 else ["*", a, b]
