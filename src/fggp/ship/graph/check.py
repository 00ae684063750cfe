"""Whether inputs are those that a graph takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fggp.ship.graph.operations import Graph, Value


def check_inputs(graph: Graph, inputs: Sequence[Any], *, any_batch: bool = False) -> None:
    """Check that inputs have the types and shapes that a graph takes.

    Args:
        graph: it.
        inputs: one for each of its inputs (`Graph.flatten`).
        any_batch: whether a graph that was captured for one batch size alone takes others too, because the caller runs
            it in pieces of that size.

    Raises:
        TypeError, ValueError: naming the input, what it is, and what it must be.
    """
    found: dict[str, tuple[int, str]] = {}
    for value, x in zip(graph.inputs, inputs, strict=True):
        if not isinstance(x, Tensor):
            raise TypeError(f"input {value.name!r} is of type {type(x).__name__}; it must be a tensor")
        wanted = _any_batch_sizes(graph, value) if any_batch else value.sizes
        fits = x.dim() == len(wanted) and all(
            isinstance(size, str) or size == actual for size, actual in zip(wanted, x.shape, strict=True)
        )
        if not fits or x.dtype != value.dtype or x.device.type != "cpu":
            raise ValueError(
                f"input {value.name!r} is {x.dtype} {tuple(x.shape)} on {x.device}; it must be {value.dtype} "
                f"({', '.join(map(str, wanted))}{',' * (len(wanted) == 1)}) on the CPU, as the example was"
            )
        for size, actual in zip(wanted, x.shape, strict=True):
            if isinstance(size, str):
                other, name = found.setdefault(size, (actual, value.name))
                if other != actual:
                    raise ValueError(
                        f"the size {size} is {actual} in the input {value.name!r} and {other} in {name!r}; "
                        f"it must be the same"
                    )


def _any_batch_sizes(graph: Graph, value: Value) -> tuple[int | str, ...]:
    has_batch = graph.batch is not None and value.shape[:1] == (graph.batch,)
    return ("N", *value.sizes[1:]) if has_batch else value.sizes
