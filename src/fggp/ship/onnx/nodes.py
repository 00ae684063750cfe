"""One node of an ONNX graph, as the functions of operators read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch

from fggp.ship.network.description import Inexpressible
from fggp.ship.onnx.builder import Builder
from fggp.ship.onnx.operands import Constant, Operand, whole_numbers

Result = Operand | tuple[Operand | None, ...]
Handler = Callable[[Builder, "Node"], Result]


@dataclass(frozen=True)
class Node:
    """A node and what it reads.

    Args:
        proto: as in the file, with all attributes given.
        opset: the version of its operators.
        inputs: None for what is left out.
    """

    proto: onnx.NodeProto
    opset: int
    inputs: list[Operand | None]
    attributes: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        given = {a.name: onnx.helper.get_attribute_value(a) for a in self.proto.attribute}
        texts = {k: v.decode() if isinstance(v, bytes) else v for k, v in given.items()}
        object.__setattr__(self, "attributes", texts)

    def input(self, place: int) -> Operand:
        """An input that must be there."""
        found = self.optional(place)
        if found is None:
            raise Inexpressible(f"it has no input {place}, which ONNX demands")
        return found

    def optional(self, place: int) -> Operand | None:
        """An input, or None."""
        return self.inputs[place] if place < len(self.inputs) else None

    def floats(self, place: int) -> Operand:
        """An input of floats."""
        found = self.input(place)
        if found.dtype != torch.float32:
            kind = str(found.dtype).removeprefix("torch.")
            raise Inexpressible(f"its input {place} is {kind}, and the network file has the operator for floats")
        return found

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def axes(self, rank: int, place: int = 1, name: str = "axes") -> list[int] | None:
        """Dimensions that are an attribute or, in newer files, an input; None if they are neither."""
        given = self.optional(place)
        axes: Sequence[int] | None = self.get(name)
        if axes is None and given is not None:
            axes = whole_numbers(given, name)
        return None if axes is None else [axis % max(rank, 1) for axis in axes]

    def axis(self, rank: int, default: int) -> int:
        """The attribute ``axis``, counted from the front."""
        return int(self.get("axis", default)) % max(rank, 1)

    def number(self, name: str, place: int, default: Any = None) -> Any:
        """A number that is an attribute or, in newer files, an input."""
        if name in self.attributes:
            return self.attributes[name]
        given = self.optional(place)
        if given is None:
            return default
        if not isinstance(given, Constant) or given.array.size != 1:
            raise Inexpressible(f"its {name} is computed by the network; it must be one constant number")
        return given.array.reshape(-1)[0].item()

    def refuse_unless(self, condition: bool, why: str) -> None:
        """Raise Inexpressible unless a condition holds."""
        if not condition:
            raise Inexpressible(why)


def by_name(table: dict[str, Handler]) -> dict[str, Handler]:
    """A table whose keys are one or several operators' names."""
    return {name: handler for names, handler in table.items() for name in names.split()}
