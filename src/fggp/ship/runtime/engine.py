"""Running a network: each of its parts by the C++ library or by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import CDLL
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from fggp.ship.graph.calls import Call
from fggp.ship.graph.free_sizes import evaluate
from fggp.ship.graph.interpret import execute
from fggp.ship.graph.operations import Graph, Product, Value, is_size
from fggp.ship.graph.simplify import with_own_constants
from fggp.ship.network.describe import describe
from fggp.ship.network.nodes import value_dtype
from fggp.ship.runtime.library import Network, RefusedError
from fggp.ship.runtime.parts import Part, divide

TRIALS = 3


@dataclass(frozen=True)
class Step:
    """What one step of a run did.

    Args:
        names: the places in the model of the operations that it computed; none for a conversion of layout.
        operators: their operators.
        runs: "kernels" (sparse), "operator" (dense) or "conversion", in the library; or "PyTorch".
        milliseconds: how long it took.
    """

    names: tuple[str, ...]
    operators: tuple[str, ...]
    runs: str
    milliseconds: float


@dataclass(frozen=True)
class ProductWeight:
    """The weight of a convolution or linear layer.

    Args:
        operation: such as "Conv2d" or "QuantizedLinear".
        shape: the weight's.
        density: the share of its non-zero elements.
    """

    operation: str
    shape: tuple[int, ...]
    density: float


class Engine:
    """Runs a network on inputs of any size that its graph leaves free.

    Args:
        graph: simplified. It may share its constants with the model: those that are needed later are copied.
        library: `fggp.ship.runtime.library.load`.

    Attributes:
        signature: the graph without its operations and their weights.
        cpu: the processor that the library was built for.
        images_are_independent: whether it is plain that no image's outputs depend on other images of the batch.
        products: the convolutions and linear layers, by their place in the model.

    Raises:
        RefusedError: the library refuses a part of the network.
    """

    def __init__(self, graph: Graph, library: CDLL) -> None:
        self.products = {
            op.place: ProductWeight(
                type(op).__name__, tuple(op.weight.shape), int(op.weight.count_nonzero()) / max(1, op.weight.numel())
            )
            for op in graph.ops
            if isinstance(op, Product)
        }
        # The library copies what it needs of the weights, so that the dense ones are free from here on.
        self._parts = [_NativePart(part, library) if part.native else _TorchPart(part) for part in divide(graph)]
        self.signature = with_own_constants(replace(graph, ops=()))
        self.cpu: str = library.fggp_cpu().decode()
        ends = (*graph.inputs, *(x for x in graph.outputs if isinstance(x, Value)))
        self.images_are_independent = all(v.batched for v in ends) and not any(isinstance(op, Call) for op in graph.ops)
        self._inputs, self._outputs, self._batch = graph.inputs, self.signature.outputs, graph.batch
        self._places = {
            size: (v, dim) for v in graph.inputs for dim, size in enumerate(v.sizes) if isinstance(size, str)
        }
        read = {v for part in self._parts if isinstance(part, _TorchPart) for op in part.ops for v in op.inputs}
        read |= {v for v in graph.outputs if isinstance(v, Value)}
        self._sizes = [op for op in graph.ops if op.output in read and is_size(op.output)]
        self._freed_after = self._values_freed_after()

    def run(self, inputs: Sequence[Tensor]) -> list[Any]:
        """Run the network.

        Args:
            inputs: one for each of the graph's inputs, of shapes and dtypes that fit it and each other.

        Returns:
            The graph's outputs. Those that are inputs are the caller's tensors; all others are new.

        Raises:
            ValueError: the network cannot be run on inputs of these sizes.
        """
        batch = self._fixed_batch(inputs)
        if batch is not None and batch != self._batch:
            return self._run_in_fixed_batches(inputs, batch)
        values = self._start(inputs)
        if any(0 in x.shape for x in inputs):
            return self._run_empty(values)
        threads = torch.get_num_threads()
        for part, unused in zip(self._parts, self._freed_after, strict=True):
            part.run(values, threads)
            for value in unused:
                del values[value]  # frees its memory
        return self._results(values)

    def profile(self, inputs: Sequence[Tensor]) -> list[Step]:
        """Run the network for these inputs a few times. Returns what it does, in order, and the least times."""
        values = self._start([x[: self._batch] if self._batch is not None else x for x in inputs])
        threads = torch.get_num_threads()
        return [step for part in self._parts for step in part.profile(values, threads)]

    def _start(self, inputs: Sequence[Tensor]) -> dict[Value, Any]:
        """The values that are known before the first part."""
        values: dict[Value, Any] = dict(zip(self._inputs, inputs, strict=True))
        for op in self._sizes:
            values[op.output] = execute(op, values)
        for part in self._parts:
            for bearer in part.bearers:
                v, dim = self._places[bearer.sizes[0]]  # type: ignore[index]
                values[bearer] = torch.empty(values[v].shape[dim], 0, dtype=torch.bool)
        return values

    def _results(self, values: Mapping[Value, Any]) -> list[Any]:
        return [values[x] if isinstance(x, Value) else x.clone() if isinstance(x, Tensor) else x for x in self._outputs]

    def _values_freed_after(self) -> list[list[Value]]:
        """The tensors that are not needed after each part; inputs and outputs are always kept."""
        kept = {*self._inputs, *(x for x in self._outputs if isinstance(x, Value))}
        kept |= {op.output for op in self._sizes}
        last = {v: i for i, part in enumerate(self._parts) for v in (*part.inputs, *part.outputs)}
        return [[v for v, at in last.items() if at == i and v not in kept] for i in range(len(self._parts))]

    # Batches that need care.

    def _run_empty(self, values: dict[Value, Any]) -> list[Any]:
        """Results without elements, for inputs without elements."""
        places = {name: (values[v], dim) for name, (v, dim) in self._places.items()}
        for x in self._outputs:
            if isinstance(x, Value) and x not in values:
                shape = [evaluate(size, places) for size in x.sizes]
                if 0 not in shape:
                    raise ValueError(
                        f"the inputs have no elements, and an output of shape {tuple(shape)} would depend on them"
                    )
                values[x] = torch.empty(shape, dtype=x.dtype)
        return self._results(values)

    def _fixed_batch(self, inputs: Sequence[Tensor]) -> int | None:
        """The batch size of the inputs, if the network was captured for one alone."""
        if self._batch is None:
            return None
        return next((len(x) for v, x in zip(self._inputs, inputs, strict=True) if self._has_batch(v)), None)

    def _has_batch(self, value: Value) -> bool:
        return value.shape[:1] == (self._batch,)

    def _run_in_fixed_batches(self, inputs: Sequence[Tensor], batch: int) -> list[Any]:
        """Run a network that was captured for one batch size. The last piece is filled up with copies."""
        size = self._batch
        assert size is not None
        parts: list[list[Any]] = []
        for start in range(0, max(batch, 1), size):
            part = []
            for value, x in zip(self._inputs, inputs, strict=True):
                if self._has_batch(value):
                    x = x[start : start + size]
                    last = x[-1:] if len(x) else x.new_zeros((1, *x.shape[1:]))
                    x = torch.cat([x, last.expand(size - len(x), *x.shape[1:])])
                part.append(x)
            parts.append(self.run(part))
        joined: list[Any] = []
        for value, *pieces in zip(self._outputs, *parts, strict=True):
            if isinstance(value, Value) and self._has_batch(value):
                joined.append(torch.cat(pieces)[:batch])
            else:
                joined.append(pieces[0])
        return joined


class _NativePart:
    """A part that the library runs."""

    def __init__(self, part: Part, library: CDLL) -> None:
        graph = part.graph
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.bearers = graph.inputs[len(graph.inputs) - len(part.sizes) :]
        description = describe(graph, input_names=[f"{i}: {v.name}" for i, v in enumerate(graph.inputs)])
        self._names = [entry["name"].encode() for entry in description.network["inputs"]]
        self._dtypes = [value_dtype(v.dtype) for v in graph.inputs]
        self._network = Network.build(description.network, description.tensors, library)

    def run(self, values: dict[Value, Any], threads: int) -> None:
        """Compute its outputs in ``values``."""
        try:
            results = self._network.run(self._given(values), threads)
        except RefusedError as error:
            raise ValueError(f"these inputs do not fit the network: {error}") from None
        for v, result in zip(self.outputs, results, strict=True):
            values[v] = result if result.dtype == v.dtype else result.to(v.dtype)  # int32 is int64 in the library

    def profile(self, values: dict[Value, Any], threads: int) -> list[Step]:
        """Its steps, and their times."""
        profile = self._network.profile(self._given(values), threads)
        self.run(values, threads)
        steps: list[Step] = []
        for entry in profile["steps"]:
            step = Step(tuple(entry["names"]), tuple(entry["operators"]), entry["runs"], entry["milliseconds"])
            if step.operators and steps and replace(steps[-1], milliseconds=step.milliseconds) == step:
                # A convolution whose input is unfolded first takes two steps.
                step = replace(step, milliseconds=steps.pop().milliseconds + step.milliseconds)
            steps.append(step)
        return steps

    def _given(self, values: Mapping[Value, Any]) -> dict[bytes, Tensor]:
        given = {}
        for name, dtype, v in zip(self._names, self._dtypes, self.inputs, strict=True):
            x = values[v]
            given[name] = x if x.dtype == dtype else x.to(dtype)
        return given


class _TorchPart:
    """A part that PyTorch runs."""

    bearers: tuple[Value, ...] = ()

    def __init__(self, part: Part) -> None:
        graph = with_own_constants(part.graph)
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.ops = [op for op in graph.ops if not is_size(op.output)]
        self._computed = [op.output for op in self.ops if op.output not in self.outputs]

    def run(self, values: dict[Value, Any], threads: int) -> None:
        """Compute its outputs in ``values``."""
        for op in self.ops:
            values[op.output] = execute(op, values)
        for v in self._computed:
            del values[v]

    def profile(self, values: dict[Value, Any], threads: int) -> list[Step]:
        """Its steps, and their times."""
        steps = []
        for op in self.ops:
            least = float("inf")
            for _ in range(TRIALS):
                start = perf_counter()
                values[op.output] = execute(op, values)
                least = min(least, perf_counter() - start)
            name = op.target_name if isinstance(op, Call) else type(op).__name__
            steps.append(Step((op.place,), (name,), "PyTorch", least * 1e3))
        return steps
