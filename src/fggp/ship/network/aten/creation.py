"""Tensors that are made of sizes and numbers alone."""

from __future__ import annotations

from typing import Any

import torch

from fggp.ship.graph.calls import Call
from fggp.ship.network.aten.common import number, operand, result_dtype, sizes_of
from fggp.ship.network.description import Inexpressible
from fggp.ship.network.nodes import Handler, Operand, Writer
from fggp.ship.network.sizes import expression

aten = torch.ops.aten


def _filled(value: float | None) -> Handler:
    """A tensor of one number; None: of the call's fill_value."""

    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        dtype = result_dtype(call)
        fill = a.get("fill_value", a.get("value")) if value is None else value
        if isinstance(fill, (Operand, torch.Tensor)):
            return w.expand(w.cast(operand(w, fill), dtype), sizes_of(call))
        fill = number(fill, "fill_value")
        fill = bool(fill) if dtype == torch.bool else int(fill) if dtype == torch.int64 else float(fill)
        return w.fill(sizes_of(call), fill, dtype)

    return write


def _uninitialised(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    """A tensor whose numbers are not defined: zeros."""
    return _filled(0)(w, call, a)  # type: ignore[return-value]


def _arange(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    dtype, start, stop, step = result_dtype(call), a.get("start", 0), a["end"], a.get("step", 1)
    if dtype == torch.int64 and not any(isinstance(x, float) for x in (start, stop, step)):
        first, last, by = (expression(x) for x in (start, stop, step))
        return w.node("arange", [], dtype, sizes_of(call), start=first, stop=last, step=by, type="I64")
    # Floats: start + step · i.
    numbers = w.cast(w.arange(sizes_of(call)[0]), torch.float32)
    if step != 1:
        numbers = w.with_number("mul", numbers, float(number(step, "step")))
    return w.cast(w.with_number("add", numbers, float(number(start, "start"))) if start else numbers, dtype)


def _linspace(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    start, stop, steps = (number(a[key], key) for key in ("start", "end", "steps"))
    return w.tensor(torch.linspace(start, stop, steps, dtype=result_dtype(call)), "linspace")


def _eye(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    rows, columns = sizes_of(call)
    same = w.binary("eq", w.reshape(w.arange(rows), (rows, 1)), w.arange(columns), torch.bool)
    return w.cast(same, result_dtype(call))


def _scalar_tensor(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    value = a.get("s", a.get("data"))
    if isinstance(value, str):
        return w.cast(w.number(value), result_dtype(call))
    return w.scalar(number(value, "value"), result_dtype(call))


def _random(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    raise Inexpressible("results of the file are not random")


def _every(names: str, handler: Handler) -> dict[Any, Handler]:
    found: dict[Any, Handler] = {}
    for name in names.split():
        packet = getattr(aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            if not overload.endswith("out") and "names" not in overload and "generator" not in overload:
                found[getattr(packet, overload)] = handler
    return found


HANDLERS: dict[Any, Handler] = {
    **_every("zeros zeros_like new_zeros zero", _filled(0)),
    **_every("ones ones_like new_ones", _filled(1)),
    **_every("full full_like new_full fill", _filled(None)),
    **_every("empty empty_like new_empty", _uninitialised),
    **_every("arange", _arange),
    aten.linspace.default: _linspace,
    **_every("eye", _eye),
    aten.scalar_tensor.default: _scalar_tensor,
    **_every("rand rand_like randn randn_like randint randperm bernoulli multinomial", _random),
}
