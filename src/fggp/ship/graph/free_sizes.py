"""Sizes of the inputs that a network leaves free: which they may be, their names, and whether it serves them all."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

# A condition on the sizes that takes more operations than this to write ends the attempt. Networks with such ones,
# such as those that pad to whole windows, take minutes, and in most cases have others that only some sizes meet.
CONDITION_OPERATIONS_MAX = 40
# The least height and width of the images of a trace.
IMAGE_SIDE = 128
# Sizes at which conditions are tried, and how often.
_TRIED = (2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 20, 24, 28, 31, 32, 33, 40, 48, 56, 64, 65, 96, 100, 112, 128, 197, 200,
          224, 225, 256, 333, 384, 512, 777, 1024, 2048)  # fmt: skip
_TRIALS = 400


class NotFreeError(RuntimeError):
    """The network does not leave its sizes free."""


def free_dimensions(x: Tensor) -> range:
    """The dimensions of an input, the batch aside, that are heights, widths or sequence lengths.

    Of [N, C, …] all but the first two; of [N, S, E] and [N, C, S] the last two, one of which the network's weights fix;
    of [N, S] the last one if these are no features but tokens or a mask.
    """
    if x.dim() == 2:
        return range(0 if x.is_floating_point() else 1, 0 if x.is_floating_point() else 2)
    return range(1, 3) if x.dim() == 3 else range(2, x.dim())


def enlarged(x: Tensor) -> Tensor:
    """Images at least as large as any but the deepest network needs for no size inside it to become 1.

    PyTorch takes a size of 1 as a constant, and then the size of the images must be one that leads to it.
    """
    sides = [size << max(0, (IMAGE_SIDE // max(size, 1)).bit_length() - 1) for size in x.shape[2:]]
    return x.new_zeros((*x.shape[:2], *sides)) if x.dim() > 3 and 0 not in x.shape else x


def names(shapes: Sequence[Sequence[Any]], known: Mapping[Any, str]) -> dict[Any, str]:
    """A name for each symbol in the shapes of the inputs.

    Args:
        shapes: of all inputs.
        known: symbols that have a name.

    Returns:
        The names: N for batches, H and W (and D) for images, S for sequences; a number is added to further ones.
        There is one N, because dimension 0 is only free where it is the batch.
    """
    found = dict(known)
    for shape in shapes:
        for dim, size in enumerate(shape):
            if not isinstance(size, torch.SymInt) or size.node.expr.is_number or size.node.expr in found:
                continue
            if dim == 0:
                found[size.node.expr] = "N"
                continue
            base = "S" if len(shape) < 4 else "DHW"[dim - len(shape)]
            taken = set(found.values())
            count = next(i for i in range(1, len(taken) + 2) if (base if i == 1 else f"{base}{i}") not in taken)
            found[size.node.expr] = base if count == 1 else f"{base}{count}"
    return found


_FUNCTIONS: dict[str, Any] = {
    "Max": max,
    "Min": min,
    "Mod": lambda a, b: a % b,
    "PythonMod": lambda a, b: a % b,
    "FloorDiv": lambda a, b: a // b,
    "CleanDiv": lambda a, b: a // b,
    "FloorToInt": math.floor,
    "CeilToInt": math.ceil,
    "TruncToInt": int,
    "ToFloat": float,
    "IntTrueDiv": lambda a, b: a / b,
    "FloatTrueDiv": lambda a, b: a / b,
    "Identity": lambda a: a,
    "Eq": lambda a, b: a == b,
    "Ne": lambda a, b: a != b,
}


def evaluate(expression: int | str, places: Mapping[str, tuple[Tensor, int]]) -> int:
    """The value of a size.

    Args:
        expression: of a Value's ``sizes``.
        places: for each name, a tensor and its dimension of this size.
    """
    sizes = {name: x.shape[dim] for name, (x, dim) in places.items()}
    found: Any = _at(_compiled(expression), sizes)
    if isinstance(found, torch.SymInt):  # in a trace, whose size a number would fix
        return found  # type: ignore[return-value]
    return int(found)


def _compiled(expression: Any) -> CodeType:
    return compile(str(expression), "size", "eval")


def _at(code: CodeType, sizes: Mapping[str, int]) -> Any:
    return eval(code, {"__builtins__": {}, **_FUNCTIONS}, dict(sizes))


@contextmanager
def tracing() -> Iterator[None]:
    """What a trace of free sizes needs around it.

    The trace ends, with NotFreeError, before its conditions become so long that it takes minutes. PyTorch is quiet,
    which logs each condition that it cannot solve. And recurrent layers leave the length of their sequences free:
    PyTorch finds the shapes of their results by taking the sequence apart, step by step.
    """
    seen = 0
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    disabled, log.disabled = log.disabled, True

    def check(*_: Any) -> None:
        nonlocal seen
        mode = torch._guards.detect_fake_mode()
        guards = [] if mode is None or mode.shape_env is None else mode.shape_env.guards
        for guard in guards[seen:]:
            if sympy.count_ops(guard.expr) > CONDITION_OPERATIONS_MAX:
                raise NotFreeError(f"a condition on the sizes is too long: {guard.expr}")
        seen = len(guards)

    hook = nn.modules.module.register_module_forward_pre_hook(check)
    recurrent = torch.ops.aten.lstm.input, torch.ops.aten.gru.input
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    kernels = [dict(op.py_kernels) for op in recurrent]
    for op in recurrent:
        op.py_kernels[composite] = _recurrent_results
        op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op, before in zip(recurrent, kernels, strict=True):
            op.py_kernels.clear()
            op.py_kernels.update(before)
            op._dispatch_cache.clear()
        hook.remove()
        log.disabled = disabled


def _recurrent_results(x: Tensor, hx: Any, params: Sequence[Tensor], *settings: Any, **_: Any) -> tuple[Tensor, ...]:
    """Tensors of the shapes that an LSTM or a GRU returns, whose arguments these are."""
    bidirectional = settings[4]
    steps = x.new_empty((*x.shape[:-1], (2 if bidirectional else 1) * params[1].shape[1]))
    return (steps, *map(torch.empty_like, hx if isinstance(hx, (list, tuple)) else [hx]))


def serve_all(program: ExportedProgram) -> bool:
    """Whether the operations of a program serve all sizes of its inputs.

    Tracing assumes conditions, such as that a size is above 7, where code of the model or of PyTorch branches. They are
    tried at many sizes. One may be violated where the network fails anyway:

    - where a size inside the network is below 2: there PyTorch only chooses another layout in memory, or a tensor is
      too small;
    - where two sizes inside the network differ that the conditions say are equal, as those of tensors that are added
      or concatenated must be;
    - where it bounds a size by that of a tensor of the model, such as a table of positions.
    """
    values = [x for node in program.graph.nodes for x in tree_leaves(node.meta.get("val")) if isinstance(x, Tensor)]
    found: list[Any] = [size for x in values for size in x.shape]
    sizes = {size.node.expr: size for size in found if isinstance(size, torch.SymInt) and not size.node.expr.is_number}
    if not sizes:
        return True
    environment: Any = next(iter(sizes.values())).node.shape_env
    symbols = set().union(*(expression.free_symbols for expression in sizes))
    constants = [t for t in (*program.state_dict.values(), *program.constants.values()) if isinstance(t, Tensor)]
    bounds = {length for t in constants for length in t.shape}
    conditions: set[CodeType] = set()
    equalities: set[CodeType] = set()
    for guard in environment.guards:
        condition = _without_ones(environment.replace(guard.expr))
        if condition == sympy.true or _bounds_by(condition, bounds):
            continue
        if not condition.free_symbols <= symbols:
            return False
        equal = isinstance(condition, sympy.Eq) and all(side in sizes for side in condition.args)
        (equalities if equal else conditions).add(_compiled(condition))
    tried = [_compiled(size) for size in sizes]
    for trial in _trials([str(symbol) for symbol in symbols]):
        try:
            if all(_at(condition, trial) for condition in conditions):
                continue
            if all(_at(size, trial) >= 2 for size in tried) and all(_at(equality, trial) for equality in equalities):
                return False
        except ZeroDivisionError:  # a tensor without elements
            continue
        except (NameError, TypeError):  # a function that is not known here
            return False
    return True


def _without_ones(condition: Any) -> Any:
    """A condition on sizes of at least 1, without "the larger of 1 and the size"."""
    return condition.replace(
        lambda e: type(e).__name__ == "Max" and len(e.args) == 2 and e.args[0] == 1, lambda e: e.args[1]
    )


def _trials(symbols: Sequence[str]) -> Iterator[dict[str, int]]:
    """Sizes to try."""
    generator = random.Random(0)
    yield from (dict.fromkeys(symbols, size) for size in _TRIED)
    yield from ({symbol: generator.choice(_TRIED) for symbol in sorted(symbols)} for _ in range(_TRIALS))


def _bounds_by(condition: Any, bounds: Iterable[int]) -> bool:
    """Whether a condition says that a free size is at most one of the bounds."""
    if not isinstance(condition, (sympy.LessThan, sympy.GreaterThan)):
        return False
    small, large = (condition.lhs, condition.rhs) if isinstance(condition, sympy.LessThan) else condition.args
    small, large = (small, large) if isinstance(condition, sympy.LessThan) else (large, small)
    return bool(small.is_symbol and large.is_Integer and int(large) in bounds)
