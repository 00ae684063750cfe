"""The pruner's part of an optimizer's step: plain Python also where the step is compiled; no part of a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

REASON = (
    "fggp's Pruner acts inside optimizer.step(), in plain Python: compile the step without fullgraph=True; the model "
    "itself may be compiled with it"
)
"""What an error of ``torch.compile(…, fullgraph=True)`` says."""


def outside_graphs(function: Callable[..., Result]) -> Callable[..., Result]:
    """A function that ``torch.compile`` calls instead of tracing it, at the cost of one graph break.

    Traced, it would be compiled anew whenever a number in it changes, as the count of steps does at every step, and
    would break the graph wherever it waits for a number from a tensor.

    Args:
        function: a function or bound method; `inspect.unwrap` gets it back.
    """
    # Called where it is needed and not as a decorator: this imports the compiler, which takes a second. Whoever has
    # an optimizer has paid for that already.
    wrapped: Callable[..., Result] = torch.compiler.disable(function, reason=REASON)  # type: ignore[no-untyped-call]
    return wrapped


def refuse_capture() -> None:
    """Refuse to take part in a step that is being captured in a CUDA graph.

    Raises:
        RuntimeError: the current CUDA stream is being captured.
    """
    cuda: Any = torch.cuda  # partly without types
    if cuda.is_initialized() and cuda.is_current_stream_capturing():
        raise RuntimeError(
            "optimizer.step() is being captured in a CUDA graph, whose replays would leave the Pruner out: capture "
            "forward and backward alone, and call optimizer.step() after each replay"
        )
