"""A network ready to run for one batch size: its memory, and its programs with PyTorch's steps in between."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from ctypes import c_double
from typing import Any

import torch
from torch import Tensor

from fggp.ship.graph.interpret import execute
from fggp.ship.graph.operations import Graph, Op, Value
from fggp.ship.runtime.instructions import Elementwise, Instruction, Product, Step, Torch
from fggp.ship.runtime.kernels import Kernels, Program
from fggp.ship.runtime.layout import Kind, like
from fggp.ship.runtime.lowering import Lowering
from fggp.ship.runtime.memory import Memory
from fggp.ship.runtime.sparse_weight import SparseWeight
from fggp.ship.runtime.tiles import c_chain, tuner

Native = Instruction | Product


class Segment:
    """Instructions that follow each other, as one program."""

    def __init__(self, kernels: Kernels, memory: Memory, instructions: Sequence[Native], threads: int) -> None:
        self.instructions = instructions
        self.program = Program(kernels)
        self._slots: list[tuple[Value, bool]] = []  # a caller's tensor, and whether it is read
        for instruction in instructions:
            if isinstance(instruction, Product):
                _, tiling = tuner(kernels, threads).choose(instruction.chain, memory.at)
                convs, keep = c_chain(instruction.chain, tiling, memory.at)
                if instruction.one_pixel:
                    self.program.add("product", convs[0], keep=keep)
                else:
                    self.program.add("conv", convs, len(convs), keep=keep)
                continue
            arguments, keep = instruction.arguments(memory.at)
            if instruction.slot is not None:
                slot = len(self._slots)
                reads = instruction.name == "load"
                arguments = (slot, *arguments) if reads else (arguments[0], slot, *arguments[1:])
                self._slots.append((instruction.slot, reads))
            self.program.add(instruction.name, *arguments, keep=keep)

    def reads(self) -> list[Value]:
        """The callers' tensors it reads."""
        return [value for value, read in self._slots if read]

    def run(self, values: dict[Value, Any], images: int, threads: int, seconds: Any) -> None:
        """Run them: read from the values, and add to them what comes out."""
        addresses = []
        kept = []
        for value, read in self._slots:
            if read:
                tensor = values[value].contiguous()
                kept.append(tensor)
            elif value in values:
                tensor = values[value]
            else:
                tensor = values[value] = torch.empty(like(value, images), dtype=torch.float32)
            addresses.append(tensor.data_ptr())
        self.program.run(addresses, images, threads, seconds)


Part = Segment | Elementwise | Torch


def _chained(steps: Sequence[Step], kernels: Kernels, threads: int) -> list[Step]:
    """The steps, products done together where that is faster."""
    memory = Memory(steps)
    best = tuner(kernels, threads)
    done: list[Step] = []
    for step in steps:
        before = done[-1] if done else None
        if isinstance(step, Product) and isinstance(before, Product) and before.takes(step):
            together = Product((*before.chain, *step.chain))
            apart = best.choose(before.chain, memory.at)[0] + best.choose(step.chain, memory.at)[0]
            if best.choose(together.chain, memory.at)[0] < apart:
                done[-1] = together
                continue
        done.append(step)
    return done


class Plan:
    """A network ready to run.

    Args:
        graph: the network.
        batch: images it is made for.
        kernels: what runs sparse products.
        lanes: images in a pixel: 1 or a whole vector (`fggp.ship.runtime.layout`).
        sparse: the products that the kernels are to run, and what is left of their weights.

    Attributes:
        capacity: the most images it can take.
        exact: whether it takes no other number.
        steps: what it does, in order.
    """

    def __init__(
        self, graph: Graph, batch: int, kernels: Kernels, lanes: int, sparse: Mapping[Op, SparseWeight]
    ) -> None:
        threads = torch.get_num_threads()
        lowering = Lowering(graph, batch, kernels, lanes, sparse)
        self.steps = _chained(lowering.steps, kernels, threads)
        self.exact = lanes == 1 or Kind.TOKENS in lowering.native.values()
        self.capacity = batch if self.exact else -(-batch // lanes) * lanes
        self.native = not any(isinstance(step, (Torch, Elementwise)) for step in self.steps)
        self.memory = Memory(self.steps)
        self._graph = graph
        self._parts: list[Part] = []
        pending: list[Native] = []
        for step in self.steps:
            if isinstance(step, Native):
                pending.append(step)
                continue
            if pending:
                self._parts.append(Segment(kernels, self.memory, pending, threads))
                pending = []
            self._parts.append(step)
        if pending:
            self._parts.append(Segment(kernels, self.memory, pending, threads))
        self._read_last = self._last_reads()
        self.memory.floats.zero_()  # trials of tilings wrote where zeros must be

    def run(
        self, inputs: Sequence[Tensor], images: int, threads: int, into: Mapping[Value, Tensor] | None = None
    ) -> list[Any]:
        """Run the network.

        Args:
            inputs: one tensor for each of the graph's inputs.
            images: their batch size.
            threads: how many the kernels use.
            into: contiguous tensors to write outputs to; else they are new ones.

        Returns:
            What the graph's outputs are.
        """
        values: dict[Value, Any] = {**dict(zip(self._graph.inputs, inputs, strict=True)), **(into or {})}
        for part in self._parts:
            self._do(part, values, images, threads, None)
            for value in self._read_last.get(part, ()):
                del values[value]  # its memory is free
        return [values[x] if isinstance(x, Value) else x for x in self._graph.outputs]

    def profile(self, inputs: Sequence[Tensor], images: int, threads: int) -> list[tuple[Step, float]]:
        """Run it once; the seconds of each step, in order."""
        values: dict[Value, Any] = dict(zip(self._graph.inputs, inputs, strict=True))
        taken: list[tuple[Step, float]] = []
        for part in self._parts:
            if isinstance(part, Segment):
                seconds = (c_double * len(part.program))()
                self._do(part, values, images, threads, seconds)
                taken += zip(part.instructions, seconds, strict=True)
            else:
                start = time.perf_counter()
                self._do(part, values, images, threads, None)
                taken.append((part, time.perf_counter() - start))
        return taken

    def _do(self, part: Part, values: dict[Value, Any], images: int, threads: int, seconds: Any) -> None:
        if isinstance(part, Segment):
            part.run(values, images, threads, seconds)
        elif isinstance(part, Torch):
            values[part.op.output] = execute(part.op, values)
        else:
            read = self.memory.view(part.reads[0])
            self.memory.view(part.writes[0]).copy_(execute(part.op, {part.op.inputs[0]: read}))

    def _last_reads(self) -> dict[Part, list[Value]]:
        """After which part each of PyTorch's tensors is no longer needed; inputs and outputs stay."""
        stay = {*self._graph.inputs, *self._graph.outputs}
        last: dict[Value, Part] = {}
        for part in self._parts:
            reads = part.reads() if isinstance(part, Segment) else part.op.inputs if isinstance(part, Torch) else ()
            last.update(dict.fromkeys(reads, part))
            if isinstance(part, Torch):
                last[part.op.output] = part
        after: dict[Part, list[Value]] = {}
        for value, part in last.items():
            if value not in stay:
                after.setdefault(part, []).append(value)
        return after
