"""What can be trained with: built-in methods by name, and one's own from a file."""

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from fggp import Method, OneShot
from fggp.lab.base.errors import UsageError
from fggp.methods import REGISTRY

METHODS = ("dense", *REGISTRY)

Kind = type[Method] | type[OneShot]


def kind_of(method: str) -> Kind | None:
    """The class of a method: a built-in one's name, or FILE.py:CLASS; None for "dense".

    Raises:
        UsageError: there is none such, its file cannot be run, or its class has no name of its own.
    """
    if method == "dense":
        return None
    file, colon, name = method.rpartition(":")
    if colon and file.endswith(".py"):
        return _own(Path(file).resolve(), name)
    if method not in REGISTRY:
        raise UsageError(
            f"method is {method!r}; it must be one of {', '.join(METHODS)}, or FILE.py:CLASS for one of your own"
        )
    return REGISTRY[method]


def _own(file: Path, name: str) -> Kind:
    kind = vars(_module(file)).get(name)
    if not isinstance(kind, type) or not issubclass(kind, Method | OneShot):
        there = [n for n, v in vars(_module(file)).items() if isinstance(v, type) and v.__module__ == _alias(file)]
        raise UsageError(
            f"method is {file.name}:{name}, but {name} is no subclass of fggp.Method or fggp.OneShot in {file}; "
            f"its classes are {', '.join(there) or 'none'}"
        )
    known = getattr(kind, "name", None)
    if not isinstance(known, str) or known in METHODS:
        raise UsageError(
            f"method {name} of {file} has the name {known!r}: set `name = ...` in the class to one that no built-in "
            f"method has, which its records will be known by"
        )
    return kind


@cache
def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_alias(file), file)
    if spec is None or spec.loader is None or not file.exists():
        raise UsageError(f"method's file {file} does not exist")
    module = sys.modules[_alias(file)] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"method's file {file} cannot be run: {type(error).__name__}: {error}") from error
    return module


def _alias(file: Path) -> str:
    return f"fggp_method_{file.stem}"


def name_of(method: str) -> str:
    """What records call a method."""
    kind = kind_of(method)
    return method if kind is None else kind.name


def without_folder(method: str) -> str:
    """A method as settings name it, without the folder of its file: that is one machine's business."""
    file, colon, name = method.rpartition(":")
    return f"{Path(file).name}:{name}" if colon else method


def acts_once(method: str) -> bool:
    """Whether a method chooses its masks once, before training."""
    kind = kind_of(method)
    return kind is not None and issubclass(kind, OneShot)


def starts_sparse(method: str) -> bool:
    """Whether a method has its final sparsity from the start."""
    return acts_once(method) or getattr(kind_of(method), "constant", False)


def own_rate(method: str) -> float | None:
    """The rate that a method has where none is given; None where it takes none."""
    kind = kind_of(method)
    rate = None if kind is None else inspect.signature(kind).parameters.get("rate")
    return None if rate is None else float(rate.default)


def make(method: str, offered: Mapping[str, Any]) -> Method | OneShot:
    """A method, given those of the offered things that its constructor asks for by name.

    Raises:
        UsageError: it asks for something else.
    """
    kind = kind_of(method)
    assert kind is not None
    parameters = inspect.signature(kind).parameters
    unknown = [name for name, p in parameters.items() if name not in offered and p.default is p.empty]
    if unknown:
        raise UsageError(
            f"method {method} needs {', '.join(unknown)}; give it a default, for a run offers {', '.join(offered)} only"
        )
    return kind(**{name: offered[name] for name in parameters if name in offered})
