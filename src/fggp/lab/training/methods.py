"""Methods and granularities by name: the built-in ones, and classes of methods in a file of the user."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import fggp
from fggp.lab.base.errors import UsageError

if TYPE_CHECKING:
    from fggp import NM, Blocks, Method, OneShot, Rows

    Kind = type[Method] | type[OneShot]

# The names of `fggp.methods.REGISTRY`, written out: help shows them, and does not wait for PyTorch.
METHODS = (
    "dense",
    "fggp",
    "gmp",
    "gradient-only",
    "gradient-first-annealed",
    "magnitude-first",
    "magnitude-first-annealed",
    "taylor",
    "random",
    "granet",
    "rigl",
    "set",
    "snip",
    "grasp",
    "synflow",
    "erk-static",
)
LABELS = {
    **{name: name.upper() for name in ("erk", "fggp", "gmp", "set", "snip")},
    **{name.lower(): name for name in ("GraNet", "GraSP", "RigL", "SynFlow")},
}


def kind_of(method: str) -> Kind | None:
    """Return the class of a method; None for "dense".

    Args:
        method: the name of a built-in method, or FILE.py:CLASS.

    Raises:
        UsageError: there is no such method, its file cannot be run, or its class has no name of its own.
    """
    if method == "dense":
        return None
    file, colon, name = method.rpartition(":")
    if colon and file.endswith(".py"):
        return _from_file(Path(file).resolve(), name)
    if method not in METHODS:
        raise UsageError(
            f"method is {method!r}; it must be one of {', '.join(METHODS)}, or FILE.py:CLASS for a class of your own"
        )
    return fggp.methods.REGISTRY[method]


def granularity_of(text: str | None) -> Blocks | Rows | NM | None:
    """Return what is pruned as one: "blocks:4", "rows", or "2:4"; None is single weights.

    Raises:
        UsageError: there is no such granularity.
    """
    if text is None:
        return None
    if text == "rows":
        return fggp.Rows()
    head, _, tail = text.partition(":")
    try:
        return fggp.Blocks(int(tail)) if head == "blocks" else fggp.NM(int(head), int(tail))
    except ValueError as error:
        raise UsageError(
            f"granularity is {text!r}; it must be blocks:N (N of at least 2), rows, or N:M (N below M)"
        ) from error


def _from_file(file: Path, name: str) -> Kind:
    kind = vars(_module(file)).get(name)
    if not isinstance(kind, type) or not issubclass(kind, fggp.Method | fggp.OneShot):
        classes = [
            n for n, v in vars(_module(file)).items() if isinstance(v, type) and v.__module__ == _module_name(file)
        ]
        raise UsageError(
            f"method is {file.name}:{name}, but {name} is no subclass of fggp.Method or fggp.OneShot in {file}; "
            f"its classes are {', '.join(classes) or 'none'}"
        )
    own_name = getattr(kind, "name", None)
    if not isinstance(own_name, str) or own_name in METHODS:
        raise UsageError(
            f"method {name} of {file} has the name {own_name!r}: set `name = ...` in the class to a name for its "
            f"records that no built-in method has"
        )
    return kind


@cache
def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_module_name(file), file)
    if spec is None or spec.loader is None or not file.exists():
        raise UsageError(f"method's file {file} does not exist")
    module = sys.modules[_module_name(file)] = importlib.util.module_from_spec(spec)  # dataclasses look up their module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"method's file {file} cannot be run: {type(error).__name__}: {error}") from error
    return module


def _module_name(file: Path) -> str:
    return f"fggp_method_{file.stem}"


def name_of(method: str) -> str:
    """Return a method's name in records."""
    kind = kind_of(method)
    return method if kind is None else kind.name


def label(name: str) -> str:
    """Return a method's name as papers write it."""
    return LABELS.get(name, name)


def without_folder(method: str) -> str:
    """Return a method as settings name it, without the folder of its file, which differs between machines."""
    file, colon, name = method.rpartition(":")
    return f"{Path(file).name}:{name}" if colon else method


def acts_once(method: str) -> bool:
    """Whether a method chooses its masks once, before training."""
    kind = kind_of(method)
    return kind is not None and issubclass(kind, fggp.OneShot)


def starts_sparse(method: str) -> bool:
    """Whether a method has its final sparsity from the start."""
    return acts_once(method) or getattr(kind_of(method), "constant", False)


def regrows(method: str) -> bool:
    """Whether a method may use weights again that were zero."""
    kind = kind_of(method)
    return kind is None or not issubclass(kind, fggp.Method) or kind.regrows()


def own_rate(method: str) -> float | None:
    """Return a method's default rate; None if it has no rate."""
    kind = kind_of(method)
    rate = None if kind is None else inspect.signature(kind).parameters.get("rate")
    return None if rate is None else float(rate.default)


def make(method: str, offered: Mapping[str, Any]) -> Method | OneShot:
    """Create a method.

    Args:
        method: its name, as in `kind_of`.
        offered: arguments by name; those that the constructor names are passed to it.

    Raises:
        UsageError: the constructor needs another argument.
    """
    kind = kind_of(method)
    assert kind is not None
    parameters = inspect.signature(kind).parameters
    unknown = [name for name, p in parameters.items() if name not in offered and p.default is p.empty]
    if unknown:
        raise UsageError(
            f"method {method} needs {', '.join(unknown)}; give it a default: a run only has {', '.join(offered)}"
        )
    return kind(**{name: offered[name] for name in parameters if name in offered})
