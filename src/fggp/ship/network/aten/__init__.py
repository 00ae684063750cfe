"""How each ATen operator is expressed by the operators of docs/network-file.md: one small function for each family.

A function gets the writer, the call, and the call's arguments by name, where values are Operands and sizes are numbers
or texts. It returns the result, or a tuple of results for operators that return several tensors.
"""

from __future__ import annotations

from typing import Any

from fggp.ship.graph.calls import Call
from fggp.ship.graph.operations import Op, Product
from fggp.ship.network.aten import creation, elementwise, movement, norms, pools, products, recurrent, reductions
from fggp.ship.network.nodes import Handler

HANDLERS: dict[Any, Handler] = {
    **products.HANDLERS,
    **norms.HANDLERS,
    **elementwise.HANDLERS,
    **reductions.HANDLERS,
    **movement.HANDLERS,
    **creation.HANDLERS,
    **pools.HANDLERS,
    **recurrent.HANDLERS,
}


def is_product(op: Op) -> bool:
    """Whether most of a network's time may go into an operation: a convolution, a linear layer, a product of matrices,
    attention or a recurrent layer."""
    if isinstance(op, Call):
        return op.target in products.HANDLERS or op.target in recurrent.HANDLERS
    return isinstance(op, Product)
