"""A graph on the sparse kernels for batches of any size: a plan for each, made when it is first needed."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fggp.ship.graph import interpret
from fggp.ship.graph.operations import Graph, Value
from fggp.ship.runtime.choice import Choice
from fggp.ship.runtime.instructions import Step
from fggp.ship.runtime.kernels import Kernels
from fggp.ship.runtime.plan import Plan

TRIALS = 3
# Batch sizes that stay ready; each holds memory for its activations and its own copy of the weights that are left.
MOST_PLANS = 8
# Threads that one group of images, as many as a vector has lanes, can keep busy.
THREADS_A_GROUP = 8


class Engine:
    """Runs a network.

    Args:
        graph: simplified.
        kernels: what runs its sparse products.
    """

    def __init__(self, graph: Graph, kernels: Kernels) -> None:
        self.graph, self.kernels = graph, kernels
        self._choice = Choice(graph, kernels)
        self._plans: OrderedDict[tuple[int, int], Plan] = OrderedDict()
        self._lanes: dict[int, int] = {}

    def run(self, inputs: Sequence[Tensor]) -> list[Any]:
        """What the graph's outputs are for these inputs, one for each of the graph's."""
        batch, threads = self.batch(inputs), torch.get_num_threads()
        if batch == 0:
            return tree_leaves(interpret.run(self.graph, inputs))  # PyTorch knows what nothing comes to
        if self.graph.batch is not None and batch != self.graph.batch:
            return self._in_fixed_pieces(inputs, batch, self.graph.batch)
        piece = self.piece(batch)
        if piece < batch:
            return self._in_pieces(inputs, batch, piece, threads)
        return self._plan(inputs, batch).run(inputs, batch, threads)

    def profile(self, inputs: Sequence[Tensor]) -> list[tuple[Step, float]]:
        """What is done for these inputs (or for the first piece of them), and the seconds each step takes."""
        batch, threads = self.batch(inputs), torch.get_num_threads()
        piece = self.piece(batch)
        if piece < batch:
            inputs, batch = [x[:piece] for x in inputs], piece
        runs = [self._plan(inputs, batch).profile(inputs, batch, threads) for _ in range(TRIALS)]
        return [(steps[0][0], min(seconds for _, seconds in steps)) for steps in zip(*runs, strict=True)]

    def batch(self, inputs: Sequence[Tensor]) -> int:
        """The batch size of the inputs.

        Raises:
            ValueError: they do not agree on one.
        """
        sizes = {len(x) for value, x in zip(self.graph.inputs, inputs, strict=True) if self._has_batch(value)}
        if len(sizes) > 1:
            raise ValueError(f"the inputs have batches of {sorted(sizes)}; all must be of one size")
        return sizes.pop() if sizes else 1

    def _has_batch(self, value: Value) -> bool:
        # Of any name: of several inputs, tracing may take each one's batch size for another number.
        varies = any(isinstance(size, str) for size in value.sizes[:1])
        return varies or (self.graph.batch is not None and value.shape[:1] == (self.graph.batch,))

    # Plans.

    def _plan(self, inputs: Sequence[Tensor], batch: int) -> Plan:
        vector = self.kernels.lanes
        if batch >= vector:
            return self._plan_for(batch, vector)
        if batch not in self._lanes:
            self._lanes[batch] = 1 if batch == 1 else min((1, vector), key=lambda n: self._seconds(inputs, batch, n))
        return self._plan_for(batch, self._lanes[batch])

    def _plan_for(self, batch: int, lanes: int) -> Plan:
        groups = -(-batch // lanes)
        for key in ((lanes, batch), (lanes, groups * lanes)):
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
        plan = Plan(self.graph, batch, self.kernels, lanes, self._choice.products(batch, lanes))
        self._plans[lanes, batch if plan.exact else plan.capacity] = plan
        if len(self._plans) > MOST_PLANS:
            self._plans.popitem(last=False)
        return plan

    def _seconds(self, inputs: Sequence[Tensor], batch: int, lanes: int) -> float:
        plan = self._plan_for(batch, lanes)
        times = []
        for _ in range(TRIALS):
            start = time.perf_counter()
            plan.run(inputs, batch, torch.get_num_threads())
            times.append(time.perf_counter() - start)
        return min(times)

    # Batches in pieces.

    def piece(self, batch: int) -> int:
        """How many images go through the network at once.

        Where no image depends on another one, only as many as keep the threads busy, because what they leave between
        layers shall still be in the caches when the next layer reads it.
        """
        piece = self.kernels.lanes * -(-torch.get_num_threads() // THREADS_A_GROUP)
        return piece if batch > piece and self._alone(self._plan_for(piece, self.kernels.lanes)) else batch

    def first(self, inputs: Sequence[Tensor], count: int) -> list[Tensor] | None:
        """The inputs for the first few images alone; None where what comes of them may depend on the others."""
        batch = self.batch(inputs)
        plan = self._plan(inputs, min(batch, self.piece(batch)))
        return [x[:count] for x in inputs] if self._alone(plan) else None

    def _alone(self, plan: Plan) -> bool:
        """Whether images go through a plan each for itself: the kernels do all of it."""
        ends = (*self.graph.inputs, *(x for x in self.graph.outputs if isinstance(x, Value)))
        return plan.native and self.graph.batch is None and all(value.batched for value in ends)

    def _in_pieces(self, inputs: Sequence[Tensor], batch: int, piece: int, threads: int) -> list[Any]:
        given = dict(zip(self.graph.inputs, inputs, strict=True))
        outputs: dict[Value, Tensor] = {
            value: torch.empty((batch, *value.shape[1:]), dtype=torch.float32)
            for value in self.graph.outputs
            if isinstance(value, Value) and value not in given
        }
        for start in range(0, batch, piece):
            here = slice(start, min(start + piece, batch))
            part = [x[here] for x in inputs]
            into = {value: x[here] for value, x in outputs.items()}
            images = here.stop - here.start
            self._plan(part, images).run(part, images, threads, into)
        values = {**given, **outputs}
        return [values[x] if isinstance(x, Value) else x for x in self.graph.outputs]

    def _in_fixed_pieces(self, inputs: Sequence[Tensor], batch: int, piece: int) -> list[Any]:
        """For a network that was captured for one batch size: the last piece is filled up with copies."""
        parts: list[list[Any]] = []
        for start in range(0, batch, piece):
            part = []
            for value, x in zip(self.graph.inputs, inputs, strict=True):
                if self._has_batch(value):
                    x = x[start : start + piece]
                    x = torch.cat([x, x[-1:].expand(piece - len(x), *x.shape[1:])])
                part.append(x)
            parts.append(self.run(part))
        joined: list[Any] = []
        for value, *pieces in zip(self.graph.outputs, *parts, strict=True):
            if isinstance(value, Value) and self._has_batch(value):
                joined.append(torch.cat(pieces)[:batch])
            else:
                joined.append(pieces[0])
        return joined
