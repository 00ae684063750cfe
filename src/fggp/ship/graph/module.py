"""A graph as a module, so that it can be run, saved and compiled as a model is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fggp.ship.graph import interpret
from fggp.ship.graph.calls import Call
from fggp.ship.graph.check import check_inputs
from fggp.ship.graph.operations import Graph, Op
from fggp.ship.graph.quantized import Quantization

if TYPE_CHECKING:
    from typing_extensions import Self


class GraphModule(nn.Module):
    """Runs a graph with PyTorch. Its constants are the module's buffers, and so is what its whole numbers stand for.

    Args:
        graph: simplified, with constants of its own.

    Attributes:
        fixed_buffers: the names of the buffers that say what whole numbers stand for: only an equal one can be loaded,
            because the others' numbers would mean something else.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        self.fixed_buffers: set[str] = set()
        known: dict[int, Tensor] = {}
        for op in graph.ops:
            for field, tensor in _constants(op):
                if id(tensor) not in known:
                    known[id(tensor)] = tensor
                    self._add(op, field, tensor)
            if stood_for := [pair for field in fields(op) for pair in _quantizations(getattr(op, field.name))]:
                # float32 has every scale exactly.
                pairs = torch.tensor([(float(q.scale), float(q.zero)) for q in stood_for])
                self.fixed_buffers.add(self._add(op, "ranges", pairs))

    @property
    def captured_graph(self) -> Graph:
        """What it runs. Its constants are the buffers."""
        return self._graph

    def _add(self, op: Op, field: str, tensor: Tensor) -> str:
        """Make a tensor a buffer where the model has it. Returns its name."""
        module: nn.Module = self
        for part in op.place.split("."):
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        found, count = field, 1
        while hasattr(module, found):
            count += 1
            found = f"{field}{count}"
        module.register_buffer(found, tensor)
        return f"{op.place}.{found}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in sorted(self.fixed_buffers):
            given, own = state_dict.get(prefix + name), self.get_buffer(name)
            if given is not None and (given.shape != own.shape or not torch.equal(given.to(own), own)):
                # At once: afterwards the weights would have been copied.
                raise RuntimeError(
                    f"{prefix + name!r} differs: the state is of a network that was quantised with other batches or "
                    f"another calibration, so its whole numbers stand for other values. Nothing was loaded"
                )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if any(fn(tensor) is not tensor for tensor in self.buffers()):
            raise TypeError(f"a {type(self).__name__} network stays on the CPU, in its types: convert the model before")
        return self

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Run the graph.

        Raises:
            TypeError, ValueError: the arguments are not such as the graph was captured for.
        """
        inputs = self._graph.flatten(args, kwargs)
        check_inputs(self._graph, inputs)
        return interpret.run(self._graph, inputs)


def _constants(op: Op) -> Iterator[tuple[str, Tensor]]:
    """The tensors that an operation holds, and what they are there."""
    if isinstance(op, Call):
        yield from (("constant", tensor) for tensor in op.constants())
        return
    for field in fields(op):
        if isinstance(tensor := getattr(op, field.name), Tensor):
            yield field.name, tensor


def _quantizations(value: object) -> Iterator[Quantization]:
    """What a field of an operation says that whole numbers stand for."""
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, Quantization):
            yield part
