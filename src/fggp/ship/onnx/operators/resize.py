"""Resizing images."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import sympy
import torch
from onnx.reference import ReferenceEvaluator

from fggp.ship.network.description import Inexpressible
from fggp.ship.onnx.builder import Builder
from fggp.ship.onnx.nodes import Node, by_name
from fggp.ship.onnx.operands import Constant, Operand, constant_array, numbers_of
from fggp.ship.onnx.sizes import Size, equal, simplest

aten = torch.ops.aten
_TARGETS = {
    ("nearest", 1): aten.upsample_nearest1d.vec,
    ("nearest", 2): aten.upsample_nearest2d.vec,
    ("nearest", 3): aten.upsample_nearest3d.vec,
    ("linear", 1): aten.upsample_linear1d.vec,
    ("linear", 2): aten.upsample_bilinear2d.vec,
    ("linear", 3): aten.upsample_trilinear3d.vec,
    ("cubic", 2): aten.upsample_bicubic2d.vec,
}


def _resize(b: Builder, n: Node) -> Operand:
    x = n.floats(0)
    if n.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise Inexpressible("it cuts a region out of its input (tf_crop_and_resize)")
    sizes, scales = _sizes_and_scales(b, n, x)
    changed = [dim for dim in range(x.rank) if not equal(sizes[dim], x.sizes[dim])]
    if not changed:
        return x
    how = _as_pytorch(n, x, sizes, scales, changed)
    count = x.rank - 2
    if how is not None and min(changed) >= 2 and (how[0], count) in _TARGETS:
        mode, corners = how
        shape = [b.size(size) for size in sizes[2:]]
        factors = None if scales is None or corners else [float(s) for s in scales[2:]]
        given = [b.argument(x), shape, *([] if mode == "nearest" else [corners]), factors]
        return b.call(_TARGETS[mode, count], *given, sizes=sizes)
    for dim in changed:
        x = _along(b, n, x, dim, sizes[dim], None if scales is None else scales[dim])
    return x


def _sizes_and_scales(b: Builder, n: Node, x: Operand) -> tuple[list[Size], list[Any] | None]:
    """The sizes of the result, and the factors if the file gives these."""
    old = n.proto.op_type == "Upsample" or n.opset < 11
    scales, sizes = (n.optional(1), None) if old else (n.optional(2), n.optional(3))
    axes = n.axes(x.rank, len(n.inputs)) or list(range(x.rank))
    if "scales" in n.attributes:
        factors: Any = np.array(n.get("scales"))
    else:
        factors = None if scales is None or scales.sizes == (0,) else scales
    result = list(x.sizes)
    if sizes is not None and sizes.sizes != (0,):
        if n.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise Inexpressible("it keeps the aspect ratio; expressed is the policy stretch")
        for axis, size in zip(axes, numbers_of(sizes, "sizes"), strict=True):
            result[axis] = size
        return result, None
    if factors is None:
        raise Inexpressible("it has neither scales nor sizes")
    numbers = factors if isinstance(factors, np.ndarray) else constant_array(factors, "scales")
    given = [1.0] * x.rank
    for axis, factor in zip(axes, numbers, strict=True):
        given[axis] = float(factor)
        result[axis] = _scaled(x.sizes[axis], float(factor))
    return result, given


def _scaled(size: Size, factor: float) -> Size:
    """floor(size * factor)."""
    if isinstance(size, int):
        return int(np.floor(np.float32(size) * np.float32(factor)))
    ratio = Fraction(factor).limit_denominator(10**6)
    return simplest(sympy.floor(size * sympy.Rational(ratio.numerator, ratio.denominator)))


def _as_pytorch(
    n: Node, x: Operand, sizes: list[Size], scales: list[Any] | None, changed: list[int]
) -> tuple[str, bool] | None:
    """The mode and align_corners of PyTorch that do the same; None if none does."""
    mode, place = n.get("mode", "nearest"), n.get("coordinate_transformation_mode", "half_pixel")
    rounding = n.get("nearest_mode", "round_prefer_floor")
    if n.proto.op_type == "Upsample" or n.opset < 11:
        place, rounding = "asymmetric", "floor"
    if n.get("antialias", 0) or n.get("exclude_outside", 0):
        return None
    if mode == "nearest":
        if place == "asymmetric" and rounding == "floor":
            return "nearest", False
        whole = _whole_factors(x, sizes, changed)
        if whole and (place in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round")):
            return "nearest", False  # each pixel is repeated
        return None
    if mode == "cubic" and n.get("cubic_coeff_a", -0.75) != -0.75:
        return None
    if place == "align_corners":
        return mode, True
    if place == "half_pixel" or (place == "pytorch_half_pixel" and all(sizes[dim] != 1 for dim in changed)):
        return mode, False
    return None


def _whole_factors(x: Operand, sizes: list[Size], changed: list[int]) -> bool:
    """Whether each dimension grows by a whole factor."""
    factors = [sympy.sympify(sizes[dim]) / x.sizes[dim] for dim in changed]
    return all(bool(factor.is_Integer) and factor >= 1 for factor in factors)


def _along(b: Builder, n: Node, x: Operand, dim: int, size: Size, scale: Any) -> Operand:
    """One dimension resized, by a product with the matrix that ONNX's own implementation gives."""
    if not isinstance(size, int) or not isinstance(x.sizes[dim], int):
        given = {k: n.get(k) for k in ("mode", "coordinate_transformation_mode", "nearest_mode") if k in n.attributes}
        raise Inexpressible(f"its size is {size} and it has {given}, which needs fixed sizes: name them in `fixed`")
    matrix = _matrix(n, int(x.sizes[dim]), size, scale)
    order = [i for i in range(x.rank) if i != dim] + [dim]
    moved = b.permute(x, order)
    weight = b.tensor(Constant(matrix))
    product = b.call(aten.linear.default, moved.value, weight, None, sizes=(*moved.sizes[:-1], size))
    back = [order.index(i) for i in range(x.rank)]
    return b.permute(product, back)


def _matrix(n: Node, before: int, after: int, scale: Any) -> np.ndarray:
    """[after, before]: what each new element is made of."""
    skipped = ("axes", "scales")
    attributes = [a for a in n.proto.attribute if a.name not in skipped]
    node = onnx.helper.make_node("Resize", ["x", "", "scales" if scale else "", "" if scale else "sizes"], ["y"])
    node.attribute.extend(attributes)
    if n.proto.op_type == "Upsample" or n.opset < 11:
        node.attribute.extend(
            [
                onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"),
                onnx.helper.make_attribute("nearest_mode", "floor"),
            ]
        )
    given = {"scales": np.array([1, scale], np.float32)} if scale else {"sizes": np.array([before, after])}
    graph = onnx.helper.make_graph(
        [node],
        "resize",
        [onnx.helper.make_tensor_value_info(k, 1 if k != "sizes" else 7, None) for k in ("x", *given)],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", max(n.opset, 13))])
    rows: Any
    (rows,) = ReferenceEvaluator(model).run(None, {"x": np.eye(before, dtype=np.float32), **given})
    return np.ascontiguousarray(rows.T, dtype=np.float32)


HANDLERS = by_name({"Resize Upsample": _resize})
