"""A network prepared for one batch size: its memory, its programs for the kernels, and PyTorch's steps between them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from ctypes import c_double
from typing import Any

import torch
from torch import Tensor

from fggp.ship.graph.interpret import execute
from fggp.ship.graph.operations import Graph, Op, Value
from fggp.ship.runtime.instructions import Instruction, Product, Step, Torch
from fggp.ship.runtime.kernels import Kernels, Program
from fggp.ship.runtime.layout import TensorKind, shape_for_batch
from fggp.ship.runtime.lowering import Lowering
from fggp.ship.runtime.memory import Memory
from fggp.ship.runtime.sparse_weight import SparseWeight
from fggp.ship.runtime.tiles import c_chain, tuner

KernelStep = Instruction | Product


class Segment:
    """Consecutive steps on the kernels, as one program."""

    def __init__(self, kernels: Kernels, memory: Memory, instructions: Sequence[KernelStep], threads: int) -> None:
        self.instructions = instructions
        self.program = Program(kernels)
        # For each slot: which of the caller's tensors it stands for; True if the program reads it, False if it writes.
        self._slots: list[tuple[Value, bool]] = []
        for instruction in instructions:
            if isinstance(instruction, Product):
                _, tiling = tuner(kernels, threads).choose(instruction.chain, memory.c_tensor)
                convs, keep = c_chain(instruction.chain, tiling, memory.c_tensor)
                name = instruction.kernel
                self.program.add(name, *((convs, len(convs)) if name == "conv" else (convs[0],)), keep=keep)
                continue
            arguments, keep = instruction.arguments(memory.c_tensor)
            if instruction.caller_tensor is not None:
                slot = len(self._slots)
                reads = instruction.name == "load"
                arguments = (slot, *arguments) if reads else (arguments[0], slot, *arguments[1:])
                self._slots.append((instruction.caller_tensor, reads))
            self.program.add(instruction.name, *arguments, keep=keep)

    def reads(self) -> list[Value]:
        """The caller's tensors that it reads."""
        return [value for value, read in self._slots if read]

    def run(self, values: dict[Value, Any], images: int, threads: int, seconds: Any) -> None:
        """Run the program on tensors in ``values``, and add its outputs there."""
        addresses = []
        alive = []  # contiguous copies, until the program has run
        for value, read in self._slots:
            if read:
                tensor = values[value].contiguous()
                alive.append(tensor)
            elif value in values:
                tensor = values[value]
            else:
                tensor = values[value] = torch.empty(shape_for_batch(value, images), dtype=torch.float32)
            addresses.append(tensor.data_ptr())
        self.program.run(addresses, images, threads, seconds)


Part = Segment | Torch


def _fuse_products(steps: Sequence[Step], kernels: Kernels, threads: int) -> list[Step]:
    """The steps, with consecutive products (convolutions, linear layers) joined to a chain where that is faster."""
    memory = Memory(steps)
    tilings = tuner(kernels, threads)
    fused: list[Step] = []
    for step in steps:
        previous = fused[-1] if fused else None
        if isinstance(step, Product) and isinstance(previous, Product) and previous.can_append(step):
            joined = Product((*previous.chain, *step.chain))
            separate = sum(tilings.choose(product.chain, memory.c_tensor)[0] for product in (previous, step))
            if tilings.choose(joined.chain, memory.c_tensor)[0] < separate:
                fused[-1] = joined
                continue
        fused.append(step)
    return fused


class Plan:
    """A network prepared for one batch size.

    Args:
        graph: the network.
        batch: the number of images.
        kernels: the kernels that run sparse products.
        lanes: the number of images in a cell: 1, or the length of a vector (`fggp.ship.runtime.layout`).
        sparse: the products that the kernels run, with their non-zero weights.

    Attributes:
        capacity: the largest number of images it can run.
        fixed_batch: whether it cannot run fewer.
        kernels_only: whether no step runs on PyTorch.
        steps: what it does, in order.
        memory: of all activations in the kernels' layout.
    """

    def __init__(
        self, graph: Graph, batch: int, kernels: Kernels, lanes: int, sparse: Mapping[Op, SparseWeight]
    ) -> None:
        threads = torch.get_num_threads()
        lowering = Lowering(graph, batch, kernels, lanes, sparse)
        self.steps = _fuse_products(lowering.steps, kernels, threads)
        self.fixed_batch = lanes == 1 or TensorKind.TOKENS in lowering.native.values()
        self.capacity = batch if self.fixed_batch else -(-batch // lanes) * lanes
        self.kernels_only = not any(isinstance(step, Torch) for step in self.steps)
        self.memory = Memory(self.steps)
        self._graph = graph
        self._parts: list[Part] = []
        pending: list[KernelStep] = []
        for step in self.steps:
            if isinstance(step, KernelStep):
                pending.append(step)
                continue
            if pending:
                self._parts.append(Segment(kernels, self.memory, pending, threads))
                pending = []
            self._parts.append(step)
        if pending:
            self._parts.append(Segment(kernels, self.memory, pending, threads))
        self._freed_after = self._values_freed_after()
        self.memory.floats.zero_()  # the trials of tilings wrote into padding

    def run(
        self, inputs: Sequence[Tensor], images: int, threads: int, out: Mapping[Value, Tensor] | None = None
    ) -> list[Any]:
        """Run the network.

        Args:
            inputs: one tensor for each of the graph's inputs.
            images: their batch size.
            threads: the number of threads that the kernels use.
            out: contiguous tensors to write outputs to; other outputs are new tensors.

        Returns:
            The graph's outputs.
        """
        values: dict[Value, Any] = {**dict(zip(self._graph.inputs, inputs, strict=True)), **(out or {})}
        for part in self._parts:
            self._run_part(part, values, images, threads, None)
            for value in self._freed_after.get(part, ()):
                del values[value]  # frees its memory
        return [values[x] if isinstance(x, Value) else x for x in self._graph.outputs]

    def profile(self, inputs: Sequence[Tensor], images: int, threads: int) -> list[tuple[Step, float]]:
        """Run the network once. Returns the steps in order, and the seconds that each takes."""
        values: dict[Value, Any] = dict(zip(self._graph.inputs, inputs, strict=True))
        profile: list[tuple[Step, float]] = []
        for part in self._parts:
            if isinstance(part, Segment):
                seconds = (c_double * len(part.program))()
                self._run_part(part, values, images, threads, seconds)
                profile += zip(part.instructions, seconds, strict=True)
            else:
                start = time.perf_counter()
                self._run_part(part, values, images, threads, None)
                profile.append((part, time.perf_counter() - start))
        return profile

    def _run_part(self, part: Part, values: dict[Value, Any], images: int, threads: int, seconds: Any) -> None:
        if isinstance(part, Segment):
            part.run(values, images, threads, seconds)
        else:
            values[part.op.output] = execute(part.op, values)

    def _values_freed_after(self) -> dict[Part, list[Value]]:
        """PyTorch's tensors that are not needed after each part; inputs and outputs are always kept."""
        kept = {*self._graph.inputs, *self._graph.outputs}
        last: dict[Value, Part] = {}
        for part in self._parts:
            reads = part.reads() if isinstance(part, Segment) else part.op.inputs
            last.update(dict.fromkeys(reads, part))
            if isinstance(part, Torch):
                last[part.op.output] = part
        after: dict[Part, list[Value]] = {}
        for value, part in last.items():
            if value not in kept:
                after.setdefault(part, []).append(value)
        return after
