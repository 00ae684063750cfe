"""How each ONNX operator is expressed by PyTorch's operators: one small function for each family.

A function gets the builder and the node, and returns the result, or a tuple of results.
"""

from __future__ import annotations

from fggp.ship.onnx.nodes import Handler
from fggp.ship.onnx.operators import (
    elementwise,
    looking_up,
    movement,
    norms,
    pools,
    products,
    recurrent,
    reductions,
    resize,
)

HANDLERS: dict[str, Handler] = {
    **products.HANDLERS,
    **norms.HANDLERS,
    **elementwise.HANDLERS,
    **reductions.HANDLERS,
    **movement.HANDLERS,
    **looking_up.HANDLERS,
    **pools.HANDLERS,
    **resize.HANDLERS,
    **recurrent.HANDLERS,
}
