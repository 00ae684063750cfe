"""Running a graph on the sparse kernels for batches of any size, with a plan for each size, made on first use."""

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
from fggp.ship.runtime.choice import ProductChoice
from fggp.ship.runtime.instructions import Step
from fggp.ship.runtime.kernels import Kernels
from fggp.ship.runtime.plan import Plan

TRIALS = 3
# Plans that are kept. Each holds memory for its activations and its own copy of the non-zero weights.
PLANS_KEPT = 8
# Threads that one group of images can keep busy; a group has one image per lane of a vector.
THREADS_PER_GROUP = 8


class SparseEngine:
    """Runs a network on batches of any size.

    Args:
        graph: the simplified network.
        kernels: the kernels that run its sparse products.
    """

    def __init__(self, graph: Graph, kernels: Kernels) -> None:
        self.graph, self.kernels = graph, kernels
        self._choice = ProductChoice(graph, kernels)
        self._plans: OrderedDict[tuple[int, int], Plan] = OrderedDict()
        self._lanes: dict[int, int] = {}

    def run(self, inputs: Sequence[Tensor]) -> list[Any]:
        """Run the network on one tensor for each of the graph's inputs. Returns the graph's outputs."""
        batch, threads = self.batch_size(inputs), torch.get_num_threads()
        if batch == 0:
            return tree_leaves(interpret.run(self.graph, inputs))  # PyTorch handles empty tensors
        if self.graph.batch is not None and batch != self.graph.batch:
            return self._run_in_fixed_pieces(inputs, batch, self.graph.batch)
        piece = self.piece_size(batch)
        if piece < batch:
            return self._run_in_pieces(inputs, batch, piece, threads)
        return self._plan(inputs, batch).run(inputs, batch, threads)

    def profile(self, inputs: Sequence[Tensor]) -> list[tuple[Step, float]]:
        """The steps for these inputs, or for the first piece of them, and the seconds that each takes."""
        batch, threads = self.batch_size(inputs), torch.get_num_threads()
        piece = self.piece_size(batch)
        if piece < batch:
            inputs, batch = [x[:piece] for x in inputs], piece
        runs = [self._plan(inputs, batch).profile(inputs, batch, threads) for _ in range(TRIALS)]
        return [(steps[0][0], min(seconds for _, seconds in steps)) for steps in zip(*runs, strict=True)]

    def batch_size(self, inputs: Sequence[Tensor]) -> int:
        """The batch size of the inputs.

        Raises:
            ValueError: they have different batch sizes.
        """
        sizes = {len(x) for value, x in zip(self.graph.inputs, inputs, strict=True) if self._has_batch(value)}
        if len(sizes) > 1:
            raise ValueError(f"the inputs have batches of sizes {sorted(sizes)}; all must have the same size")
        return sizes.pop() if sizes else 1

    def _has_batch(self, value: Value) -> bool:
        # Any symbol counts, because tracing may give the batch sizes of several inputs different symbols.
        varies = any(isinstance(size, str) for size in value.sizes[:1])
        return varies or (self.graph.batch is not None and value.shape[:1] == (self.graph.batch,))

    # Plans.

    def _plan(self, inputs: Sequence[Tensor], batch: int) -> Plan:
        vector = self.kernels.lanes
        if batch >= vector:
            return self._plan_for(batch, vector)
        if batch not in self._lanes:
            self._lanes[batch] = (
                1 if batch == 1 else min((1, vector), key=lambda n: self._least_seconds(inputs, batch, n))
            )
        return self._plan_for(batch, self._lanes[batch])

    def _plan_for(self, batch: int, lanes: int) -> Plan:
        groups = -(-batch // lanes)
        for key in ((lanes, batch), (lanes, groups * lanes)):
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
        plan = Plan(self.graph, batch, self.kernels, lanes, self._choice.products(batch, lanes))
        self._plans[lanes, batch if plan.fixed_batch else plan.capacity] = plan
        if len(self._plans) > PLANS_KEPT:
            self._plans.popitem(last=False)
        return plan

    def _least_seconds(self, inputs: Sequence[Tensor], batch: int, lanes: int) -> float:
        plan = self._plan_for(batch, lanes)
        times = []
        for _ in range(TRIALS):
            start = time.perf_counter()
            plan.run(inputs, batch, torch.get_num_threads())
            times.append(time.perf_counter() - start)
        return min(times)

    # Large batches, in pieces.

    def piece_size(self, batch: int) -> int:
        """The number of images that run through the network at once.

        If images are independent, that is the least number that keeps all threads busy, so that the activations between
        two layers stay in the caches.
        """
        piece = self.kernels.lanes * -(-torch.get_num_threads() // THREADS_PER_GROUP)
        return (
            piece
            if batch > piece and self._images_are_independent(self._plan_for(piece, self.kernels.lanes))
            else batch
        )

    def first_images(self, inputs: Sequence[Tensor], count: int) -> list[Tensor] | None:
        """The inputs of the first ``count`` images; None if their outputs may depend on the other images."""
        batch = self.batch_size(inputs)
        plan = self._plan(inputs, min(batch, self.piece_size(batch)))
        return [x[:count] for x in inputs] if self._images_are_independent(plan) else None

    def _images_are_independent(self, plan: Plan) -> bool:
        """Whether no image's output depends on another image: known only where the kernels run the whole plan."""
        ends = (*self.graph.inputs, *(x for x in self.graph.outputs if isinstance(x, Value)))
        return plan.kernels_only and self.graph.batch is None and all(value.batched for value in ends)

    def _run_in_pieces(self, inputs: Sequence[Tensor], batch: int, piece: int, threads: int) -> list[Any]:
        given = dict(zip(self.graph.inputs, inputs, strict=True))
        outputs: dict[Value, Tensor] = {
            value: torch.empty((batch, *value.shape[1:]), dtype=torch.float32)
            for value in self.graph.outputs
            if isinstance(value, Value) and value not in given
        }
        for start in range(0, batch, piece):
            stop = min(start + piece, batch)
            part = [x[start:stop] for x in inputs]
            out = {value: x[start:stop] for value, x in outputs.items()}
            self._plan(part, stop - start).run(part, stop - start, threads, out)
        values = {**given, **outputs}
        return [values[x] if isinstance(x, Value) else x for x in self.graph.outputs]

    def _run_in_fixed_pieces(self, inputs: Sequence[Tensor], batch: int, piece: int) -> list[Any]:
        """Run a network that was captured for one batch size. The last piece is filled up with copies."""
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
