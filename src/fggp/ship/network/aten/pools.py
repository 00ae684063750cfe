"""Pools and resizing."""

from __future__ import annotations

from typing import Any

import torch

from fggp.ship.graph.calls import Call
from fggp.ship.network.aten.common import by_dimension, floats, sizes_of
from fggp.ship.network.description import Inexpressible
from fggp.ship.network.nodes import Handler, Operand, Writer
from fggp.ship.network.sizes import expressions

aten = torch.ops.aten


def _with_batch(write: Any) -> Handler:
    """Images without a batch get one of 1 for a while. write: gets also the number of spatial dimensions."""

    def written(w: Writer, call: Call, a: dict[str, Any]) -> Any:
        count = int(str(call.target).split(".")[1].split("d")[-2][-1])  # "aten.max_pool2d.default"
        x, sizes = floats(w, a["self"]), tuple(sizes_of(call))
        single = x.rank == count + 1
        if single:
            x, sizes = w.reshape(x, (1, *x.sizes)), (1, *sizes)
        y = write(w, x, a, count, sizes)
        return w.reshape(y, sizes[1:]) if single else y

    return written


def _max_pool(w: Writer, x: Operand, a: dict[str, Any], count: int, sizes: Any) -> Operand:
    kernel = by_dimension(a["kernel_size"], count)
    return w.node(
        "max_pool",
        [x],
        torch.float32,
        sizes,
        kernel=kernel,
        stride=by_dimension(a["stride"] or kernel, count),
        padding=by_dimension(a["padding"], count),
        dilation=by_dimension(a["dilation"], count),
        ceil=bool(a["ceil_mode"]),
    )


def _average_pool(w: Writer, x: Operand, a: dict[str, Any], count: int, sizes: Any) -> Operand:
    kernel = by_dimension(a["kernel_size"], count)
    return w.node(
        "average_pool",
        [x],
        torch.float32,
        sizes,
        kernel=kernel,
        stride=by_dimension(a["stride"] or kernel, count),
        padding=by_dimension(a["padding"], count),
        ceil=bool(a["ceil_mode"]),
        count_padding=bool(a["count_include_pad"]),
        divisor=a.get("divisor_override"),
    )


def _adaptive_average_pool(w: Writer, x: Operand, a: dict[str, Any], count: int, sizes: Any) -> Operand:
    return w.node("adaptive_average_pool", [x], torch.float32, sizes, size=expressions(sizes[2:]))


def _adaptive_max_pool(w: Writer, call: Call, a: dict[str, Any]) -> tuple[Operand, ...]:
    x = floats(w, a["self"])
    size = a["output_size"]
    count = len(size)
    single = x.rank == count + 1
    if single:
        x = w.reshape(x, (1, *x.sizes))
    sizes = (*x.sizes[:2], *size)
    y = w.node("adaptive_max_pool", [x], torch.float32, sizes, size=expressions(size))
    return (w.reshape(y, sizes[1:]) if single else y,)  # places are not computed


def _max_pool_with_places(w: Writer, call: Call, a: dict[str, Any]) -> tuple[Operand, ...]:
    """Of the results only the values are computed; their shape is not in the graph."""
    raise Inexpressible("the file's max_pool has no indices")


def _resize(mode: str) -> Handler:
    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        x = floats(w, a["self"] if "self" in a else a["input"])
        count = x.rank - 2
        scales = a.get("scale_factors")
        if scales is None:
            scales = [a.get(key) for key in ("scales_d", "scales_h", "scales_w")[3 - count :]]
            if count == 1:
                scales = [a.get("scales", a.get("scales_w"))]
        return w.node(
            "resize",
            [x],
            torch.float32,
            sizes_of(call),
            size=expressions(sizes_of(call)[2:]),
            mode=mode,
            align_corners=a.get("align_corners") or None,
            scales=list(scales) if any(scale is not None for scale in scales) else None,
        )

    return write


def _overloads(names: str, handler: Handler) -> dict[Any, Handler]:
    found: dict[Any, Handler] = {}
    for name in names.split():
        packet = getattr(aten, name)
        found |= {getattr(packet, overload): handler for overload in packet.overloads() if "out" not in overload}
    return found


HANDLERS: dict[Any, Handler] = {
    **_overloads("max_pool1d max_pool2d max_pool3d", _with_batch(_max_pool)),
    **_overloads("avg_pool1d avg_pool2d avg_pool3d", _with_batch(_average_pool)),
    **_overloads(
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d",
        _with_batch(_adaptive_average_pool),
    ),
    **_overloads("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", _adaptive_max_pool),
    **_overloads("max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices", _max_pool_with_places),
    **_overloads("upsample_nearest1d upsample_nearest2d upsample_nearest3d", _resize("nearest")),
    **_overloads(
        "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d", _resize("nearest_exact")
    ),
    **_overloads("upsample_linear1d upsample_bilinear2d upsample_trilinear3d", _resize("linear")),
    **_overloads("upsample_bicubic2d", _resize("cubic")),
}
