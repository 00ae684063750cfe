"""Keeps the pruner's part of an optimizer's step out of compiled graphs and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

REASON = (
    "fggp's Pruner acts inside optimizer.step(), in plain Python: compile the step without fullgraph=True; the model "
    "itself may be compiled with it"
)
"""The reason that ``torch.compile(…, fullgraph=True)`` gives in its error."""


def outside_graphs(function: Callable[..., Result]) -> Callable[..., Result]:
    """Wrap a function so that ``torch.compile`` calls it instead of tracing it, at the cost of one graph break.

    If it were traced, it would be recompiled whenever a number in it changes (the count of steps does at every step),
    and would break the graph wherever it reads a number from a tensor.

    Args:
        function: a function or bound method; `inspect.unwrap` gets it back.
    """
    # Not a decorator: this call imports the compiler, which takes a second. Optimizers import it anyway.
    wrapped: Callable[..., Result] = torch.compiler.disable(function, reason=REASON)  # type: ignore[no-untyped-call]
    return wrapped


def refuse_capture() -> None:
    """Refuse a step that is being captured in a CUDA graph.

    Raises:
        RuntimeError: the current CUDA stream is being captured.
    """
    cuda: Any = torch.cuda  # partly without types
    if cuda.is_initialized() and cuda.is_current_stream_capturing():
        raise RuntimeError(
            "optimizer.step() is being captured in a CUDA graph, whose replays would not call the Pruner: capture "
            "forward and backward alone, and call optimizer.step() after each replay"
        )
