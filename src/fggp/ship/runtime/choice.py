"""Choosing which products the sparse kernels run: those that are clearly sparse, and others by measurement.

A product is a convolution or a linear layer. Its density is the share of non-zero weights.
"""

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
from fggp.ship.runtime.layout import TensorKind, shape_for_batch
from fggp.ship.runtime.lowering import supported_kind
from fggp.ship.runtime.plan import Plan
from fggp.ship.runtime.sparse_weight import SparseWeight

# On images, products up to the density CLEARLY_SPARSE run on the kernels without a measurement: all that were measured
# were faster there. Above CLEARLY_DENSE products run on PyTorch without a measurement: all that were measured were
# slower on the kernels. All others are measured when the network is compiled: those between the two densities, those on
# tokens up to CLEARLY_DENSE, and those above CLEARLY_DENSE with at most SMALL_LAYER_WEIGHTS non-zero weights. This last
# group is mostly the first convolution of a network. If PyTorch ran it, its output would have to be converted for the
# next layers, so even a dense one may gain.
CLEARLY_SPARSE, CLEARLY_DENSE = 0.25, 0.7
SMALL_LAYER_WEIGHTS = 1 << 14
TRIALS = 3

Products = Mapping[Op, SparseWeight]


class ProductChoice:
    """Chooses the products that the kernels run, for one network and each batch size.

    Args:
        graph: the network.
        kernels: the kernels that run sparse products.
    """

    def __init__(self, graph: Graph, kernels: Kernels) -> None:
        self._graph, self._kernels = graph, kernels
        self._candidates: dict[Op, SparseWeight] = {}
        for op in graph.ops:
            if isinstance(op, (Conv2d, Linear)) and supported_kind(op, graph) is not None:
                nonzero = int(op.weight.count_nonzero())
                if nonzero <= max(CLEARLY_DENSE * op.weight.numel(), SMALL_LAYER_WEIGHTS):
                    self._candidates[op] = SparseWeight.of(op)
        self._measured: dict[tuple[Any, ...], bool] = {}

    def products(self, batch: int, lanes: int) -> Products:
        """The products that the kernels run, with their non-zero weights."""
        return {op: sparse for op, sparse in self._candidates.items() if self._is_faster(op, sparse, batch, lanes)}

    def _is_faster(self, op: Op, sparse: SparseWeight, batch: int, lanes: int) -> bool:
        assert isinstance(op, (Conv2d, Linear))
        images = supported_kind(op, self._graph) is TensorKind.IMAGES
        density = sparse.values.numel() / op.weight.numel()
        if images and density <= CLEARLY_SPARSE:
            return True
        shapes = [shape_for_batch(value, batch) for value in (*op.inputs, op.output)]
        settings = (op.stride, op.padding, op.dilation, op.groups) if isinstance(op, Conv2d) else ()
        key = (batch, lanes, op.weight.shape, f"{density:.1g}", *shapes, *settings)
        if key not in self._measured:
            self._measured[key] = self._measure(op, sparse, batch, lanes, images)
        return self._measured[key]

    def _measure(self, op: Op, sparse: SparseWeight, batch: int, lanes: int, images: bool) -> bool:
        """Time this product alone. Returns whether the kernels are faster than PyTorch."""
        inputs = tuple(dict.fromkeys(op.inputs))
        graph = Graph(inputs, (), (op,), (op.output,), tree_structure(0), self._graph.batch)
        plan = Plan(graph, batch, self._kernels, lanes, {op: sparse})
        # A generator of its own, so that compiling does not change the caller's random numbers.
        examples = [torch.randn(shape_for_batch(value, batch), generator=torch.Generator()) for value in inputs]
        threads = torch.get_num_threads()
        product = conversions = float("inf")
        for _ in range(TRIALS):
            seconds = plan.profile(examples, batch, threads)
            product = min(product, sum(s for step, s in seconds if isinstance(step, Product)))
            conversions = min(conversions, sum(s for step, s in seconds if not isinstance(step, Product)))
        dense = _least_seconds(lambda: execute(op, dict(zip(inputs, examples, strict=True))))
        # Images: the neighbours mostly run on the kernels, so running this product on PyTorch costs the conversions.
        # Tokens: the neighbours mostly run on PyTorch, so running this product on the kernels costs the conversions.
        return product < dense + conversions if images else product + conversions < dense


def _least_seconds(work: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
