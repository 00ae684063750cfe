"""How each ATen operator is expressed by the operators of docs/network-file.md: one small function for each family.

A function gets the writer, the call, and the call's arguments by name, where values are Operands and sizes are numbers
or texts. It returns the result, or a tuple of results for operators that return several tensors.
"""

from __future__ import annotations

from typing import Any

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
