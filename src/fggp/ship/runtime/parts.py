"""Dividing a network: what the C++ library runs, and what is left to PyTorch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_structure

from fggp.ship.graph.operations import Graph, Op, Value, is_size
from fggp.ship.network.aten import is_product
from fggp.ship.network.describe import written_alone
from fggp.ship.network.description import Inexpressible


@dataclass(frozen=True, eq=False)
class Part:
    """Operations of a network that run one after another in one place.

    Args:
        graph: the operations. Its inputs are what they read of other parts, its outputs what other parts read.
        native: whether the library runs it, or else PyTorch.
        sizes: the free sizes that its operations depend on and no value that they read has. The last inputs of
            ``graph`` are tensors of these sizes without elements.
    """

    graph: Graph
    native: bool
    sizes: tuple[str, ...] = ()


def divide(graph: Graph) -> list[Part]:
    """Divide a network into as few parts as possible.

    The library runs all operations that it has, unless that saves no product: a convolution, a linear layer, a product
    of matrices, attention or a recurrent layer.

    Args:
        graph: simplified.

    Returns:
        The parts, in an order in which they can run.
    """
    expressible = _expressible(graph)
    while True:
        groups = list(_grouped(graph, expressible))
        useless = [op for native, ops in groups if native and not any(map(is_product, ops)) for op in ops]
        if not useless:
            return [_part(graph, native, ops) for native, ops in groups]
        expressible -= set(useless)


def _expressible(graph: Graph) -> set[Op]:
    """The operations that the library has."""
    found: set[Op] = set()
    written: dict[Value, Any] = {}
    for op in graph.ops:
        if is_size(op.output):
            continue
        try:
            written[op.output] = written_alone(op, written)
            found.add(op)
        except (Inexpressible, ValueError):
            pass
    return found


def _grouped(graph: Graph, expressible: set[Op]) -> Iterator[tuple[bool, list[Op]]]:
    """Operations that can run together, as many as possible at a time: by the library (True) or by PyTorch (False)."""
    known = {*graph.inputs, *(op.output for op in graph.ops if is_size(op.output))}
    waiting = [op for op in graph.ops if op.output not in known]
    native = True
    while waiting:
        chosen: list[Op] = []
        later: list[Op] = []
        for op in waiting:
            if (op in expressible) == native and all(v in known for v in op.inputs):
                chosen.append(op)
                known.add(op.output)
            else:
                later.append(op)
        if chosen:
            yield native, chosen
        waiting, native = later, not native


def _part(graph: Graph, native: bool, ops: Sequence[Op]) -> Part:
    computed = {op.output for op in ops}
    members = set(ops)
    read = dict.fromkeys(v for op in ops for v in op.inputs if v not in computed and not is_size(v))
    wanted = {v for op in graph.ops if op not in members for v in op.inputs}
    wanted |= {v for v in graph.outputs if isinstance(v, Value)}
    outputs = tuple(op.output for op in ops if op.output in wanted)
    sizes = _missing_sizes(graph, tuple(read), ops) if native else ()
    bearers = tuple(Value(f"size of {name}", (1, 0), torch.bool, (name, 0)) for name in sizes)
    inputs = (*read, *bearers)
    needed = [op for op in graph.ops if is_size(op.output) and any(op.output in other.inputs for other in ops)]
    return Part(
        Graph(inputs, (), (*needed, *ops), outputs, tree_structure([0] * len(outputs)), graph.batch), native, sizes
    )


def _missing_sizes(graph: Graph, read: Sequence[Value], ops: Sequence[Op]) -> tuple[str, ...]:
    """The free sizes that some operations depend on, but that no value which they read has."""
    names = dict.fromkeys(size for v in graph.inputs for size in v.sizes if isinstance(size, str))
    given = {size for v in read for size in v.sizes}
    values = [*(op.output for op in ops), *(v for op in ops for v in op.inputs)]
    used = {word for v in values for size in v.sizes for word in re.findall(r"\w+", str(size))}
    return tuple(name for name in names if name in used and name not in given)
