"""A graph as a module, so that it can be run, saved and compiled as a model is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fggp.ship.graph import interpret
from fggp.ship.graph.operations import Call, Graph, Op

if TYPE_CHECKING:
    from typing_extensions import Self


class GraphModule(nn.Module):
    """Runs a graph with PyTorch. Its constants are the module's buffers.

    Args:
        graph: simplified, with constants of its own.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        known: dict[int, Tensor] = {}
        for op in graph.ops:
            for field, tensor in _constants(op):
                if id(tensor) not in known:
                    known[id(tensor)] = tensor
                    self._add(op, field, tensor)

    @property
    def captured_graph(self) -> Graph:
        """What it runs. Its constants are the buffers."""
        return self._graph

    def _add(self, op: Op, field: str, tensor: Tensor) -> None:
        """Make a tensor a buffer where the model has it."""
        module: nn.Module = self
        for part in (getattr(op, "layer", "") or op.output.module or op.output.name).split("."):
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        found, count = field, 1
        while hasattr(module, found):
            count += 1
            found = f"{field}{count}"
        module.register_buffer(found, tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if any(fn(tensor) is not tensor for tensor in self.buffers()):
            raise TypeError(f"a {type(self).__name__} network stays on the CPU, in its types: convert the model before")
        return self

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Run the graph."""
        return interpret.run(self._graph, self._graph.flatten(args, kwargs))


def _constants(op: Op) -> Iterator[tuple[str, Tensor]]:
    """The tensors that an operation holds, and what they are there."""
    if isinstance(op, Call):
        yield from (("constant", tensor) for tensor in op.constants())
        return
    for field in fields(op):
        if isinstance(tensor := getattr(op, field.name), Tensor):
            yield field.name, tensor
