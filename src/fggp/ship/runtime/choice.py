"""Which products are worth handing to the sparse kernels: the clearly sparse ones, and others by trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_structure

from fggp.ship.graph.interpret import execute
from fggp.ship.graph.operations import Conv2d, Graph, Linear, Op
from fggp.ship.runtime.instructions import Product
from fggp.ship.runtime.kernels import Kernels
from fggp.ship.runtime.layout import Kind, like
from fggp.ship.runtime.lowering import kind_of
from fggp.ship.runtime.plan import Plan
from fggp.ship.runtime.sparse_weight import SparseWeight

# Below this density skipping zeros has won wherever it was measured; above the other it has lost, but for layers of a
# few weights, such as a first convolution that is never alone.
CLEARLY_SPARSE, CLEARLY_DENSE = 0.25, 0.7
FEW = 1 << 14
TRIALS = 3

Products = Mapping[Op, SparseWeight]


class Choice:
    """Decides for one network, batch size by batch size.

    Args:
        graph: the network.
        kernels: what runs sparse products.
    """

    def __init__(self, graph: Graph, kernels: Kernels) -> None:
        self._graph, self._kernels = graph, kernels
        self._candidates: dict[Op, SparseWeight] = {}
        for op in graph.ops:
            if isinstance(op, (Conv2d, Linear)) and kind_of(op, graph) is not None:
                left = int(op.weight.count_nonzero())
                if left <= max(CLEARLY_DENSE * op.weight.numel(), FEW):
                    self._candidates[op] = SparseWeight.of(op)
        self._won: dict[tuple[Any, ...], bool] = {}

    def products(self, batch: int, lanes: int) -> Products:
        """The products for the kernels, and what is left of their weights."""
        return {op: left for op, left in self._candidates.items() if self._wins(op, left, batch, lanes)}

    def _wins(self, op: Op, left: SparseWeight, batch: int, lanes: int) -> bool:
        assert isinstance(op, (Conv2d, Linear))
        images = kind_of(op, self._graph) is Kind.IMAGES
        density = left.values.numel() / op.weight.numel()
        if images and density <= CLEARLY_SPARSE:
            return True
        where = [like(value, batch) for value in (*op.inputs, op.output)]
        settings = (op.stride, op.padding, op.dilation, op.groups) if isinstance(op, Conv2d) else ()
        key = (batch, lanes, op.weight.shape, f"{density:.1g}", *where, *settings)
        if key not in self._won:
            self._won[key] = self._trial(op, left, batch, lanes, images)
        return self._won[key]

    def _trial(self, op: Op, left: SparseWeight, batch: int, lanes: int, images: bool) -> bool:
        """Whether the kernels are faster than PyTorch with a product alone."""
        inputs = tuple(dict.fromkeys(op.inputs))
        graph = Graph(inputs, (), (op,), (op.output,), tree_structure(0), self._graph.batch)
        plan = Plan(graph, batch, self._kernels, lanes, {op: left})
        # A generator of its own: compiling must not change what the caller's draws next.
        given = [torch.randn(like(value, batch), generator=torch.Generator()) for value in inputs]
        threads = torch.get_num_threads()
        product = conversions = float("inf")
        for _ in range(TRIALS):
            seconds = plan.profile(given, batch, threads)
            product = min(product, sum(s for step, s in seconds if isinstance(step, Product)))
            conversions = min(conversions, sum(s for step, s in seconds if not isinstance(step, Product)))
        dense = _seconds(lambda: execute(op, dict(zip(inputs, given, strict=True))))
        # Between images, activations mostly stay in the kernels' layout, so that it is PyTorch that needs conversions;
        # between tokens there mostly is something that only PyTorch does.
        return product < dense + conversions if images else product + conversions < dense


def _seconds(work: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
