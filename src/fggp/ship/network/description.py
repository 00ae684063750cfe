"""What a network file says of a network, and the error for what it cannot say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Description:
    """A network without PyTorch.

    Args:
        network: what the file's entry ``network`` holds, as docs/network-file.md defines it, but for the
            version; JSON without NaN.
        tensors: float32, int64 or bool, contiguous, by the names that the network reads.
    """

    network: dict[str, Any]
    tensors: dict[str, Tensor]


class UnsupportedError(RuntimeError):
    """A network needs what the network file does not have.

    Attributes:
        found: each operator that is not supported, its place in the model, and why.
    """

    def __init__(self, found: Sequence[tuple[str, str, str]]) -> None:
        self.found = tuple(found)
        lines = [f"  {operator} in {place or 'the model itself'}: {why}" for operator, place, why in found]
        super().__init__("the network file cannot express this network:\n" + "\n".join(dict.fromkeys(lines)))


class Inexpressible(Exception):
    """One operation cannot be expressed; the message says why."""
