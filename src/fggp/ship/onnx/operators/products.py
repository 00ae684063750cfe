"""Products: convolutions, products of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fggp.ship.network.description import Inexpressible
from fggp.ship.onnx.builder import Builder
from fggp.ship.onnx.nodes import Node, by_name
from fggp.ship.onnx.operands import Constant, Operand, Running
from fggp.ship.onnx.sizes import Size, larger, quotient, quotient_up, simplest

aten = torch.ops.aten


def spatial_pads(
    n: Node, sizes: Sequence[Size], window: Sequence[int], stride: Sequence[int]
) -> list[tuple[Size, Size]]:
    """How much a convolution or pool pads each spatial dimension, before and after.

    Args:
        n: with the attributes ``pads`` and ``auto_pad``.
        sizes: of the spatial dimensions.
        window: how many elements each window spans, its gaps included.
        stride: by dimension.
    """
    auto, count = n.get("auto_pad", "NOTSET"), len(sizes)
    if auto == "VALID":
        return [(0, 0)] * count
    if auto == "NOTSET":
        pads = n.get("pads", [0] * 2 * count)
        return [(pads[i], pads[i + count]) for i in range(count)]
    result: list[tuple[Size, Size]] = []
    for size, span, step in zip(sizes, window, stride, strict=True):
        windows: Any = quotient_up(size, step)
        total = larger(simplest((windows - 1) * step + span - size) if step != 1 else span - 1, 0)
        half = quotient(total, 2)
        other = simplest(total - half)
        result.append((half, other) if auto == "SAME_UPPER" else (other, half))
    return result


def split_pads(
    b: Builder, x: Operand, pads: Sequence[tuple[Size, Size]], value: float = 0
) -> tuple[Operand, list[int]]:
    """The input and its padding on both sides; a padding that is not the same on both is put into the input."""
    if all(isinstance(before, int) and before == after for before, after in pads):
        return x, [int(before) for before, _ in pads]
    return b.pad(x, [(0, 0), (0, 0), *pads], value=value), [0] * len(pads)


def _convolution(b: Builder, n: Node) -> Operand:
    x, weight, bias = n.floats(0), n.floats(1), n.optional(2)
    count = x.rank - 2
    kernel = _fixed(n.get("kernel_shape") or weight.sizes[2:], "kernel")
    stride, dilation = n.get("strides", [1] * count), n.get("dilations", [1] * count)
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    x, padding = split_pads(b, x, spatial_pads(n, x.sizes[2:], span, stride))
    groups = n.get("group", 1)
    b.same(x.sizes[1], simplest(weight.sizes[1] * groups))
    windows = [
        simplest(quotient(simplest(size + 2 * p - s), step) + 1)
        for size, p, s, step in zip(x.sizes[2:], padding, span, stride, strict=True)
    ]
    how = stride, padding, dilation, False, [0] * count, groups
    return _convolved(b, x, weight, bias, how, (x.sizes[0], weight.sizes[0], *windows))


def _convolved(b: Builder, x: Operand, weight: Operand, bias: Operand | None, how: Any, sizes: Any) -> Running:
    given = [b.argument(x), b.argument(weight)]
    given.append(None if bias is None else b.argument(bias))
    return b.call(aten.convolution.default, *given, *map(_plain, how), sizes=sizes)


def _plain(x: Any) -> Any:
    return [int(number) for number in x] if isinstance(x, (list, tuple)) else x


def _fixed(sizes: Sequence[Size], what: str) -> list[int]:
    if not all(isinstance(size, int) for size in sizes):
        raise Inexpressible(f"its {what} is {list(sizes)}; it must be of numbers")
    return [int(size) for size in sizes]


def _transposed(b: Builder, n: Node) -> Operand:
    """The pads cut the result: what is the same on both sides the operator does, and the rest a slice."""
    x, weight, bias = n.floats(0), n.floats(1), n.optional(2)
    count, groups = x.rank - 2, n.get("group", 1)
    b.same(x.sizes[1], weight.sizes[0])
    kernel = _fixed(weight.sizes[2:], "kernel")
    stride, dilation = n.get("strides", [1] * count), n.get("dilations", [1] * count)
    extra = list(n.get("output_padding", [0] * count))
    full = [
        simplest((size - 1) * s + (k - 1) * d + 1 + e)
        for size, s, k, d, e in zip(x.sizes[2:], stride, kernel, dilation, extra, strict=True)
    ]
    cuts = _cuts(n, x.sizes[2:], full, stride)
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise Inexpressible(f"its output_padding {extra} is not below its stride {list(stride)}")
    # A negative cut is more padding.
    both = [before if isinstance(before, int) and before == after and before >= 0 else 0 for before, after in cuts]
    rest = [(simplest(u - p), simplest(v - p)) for (u, v), p in zip(cuts, both, strict=True)]
    channels = simplest(weight.sizes[1] * groups)
    sizes: list[Size] = [x.sizes[0], channels]
    sizes += [simplest(f - 2 * p) for f, p in zip(full, both, strict=True)]
    y: Operand = _convolved(b, x, weight, bias, (stride, both, dilation, True, extra, groups), sizes)
    for dim, (before, after) in enumerate(rest, 2):
        if before or after:
            y = b.slice(y, dim, before, simplest(y.sizes[dim] - after))
    return y


def _cuts(n: Node, sizes: Sequence[Size], full: Sequence[Size], stride: Sequence[int]) -> list[tuple[Size, Size]]:
    """How much of the uncut result is cut off, before and after."""
    auto, wanted = n.get("auto_pad", "NOTSET"), n.get("output_shape")
    count = len(sizes)
    if wanted is None and auto in ("NOTSET", "VALID"):
        pads = n.get("pads", [0] * 2 * count) if auto == "NOTSET" else [0] * 2 * count
        return [(pads[i], pads[i + count]) for i in range(count)]
    if wanted is None:
        wanted = [size * step for size, step in zip(sizes, stride, strict=True)]
    result: list[tuple[Size, Size]] = []
    for size, given in zip(full, wanted[-count:], strict=True):
        total = simplest(size - given)
        if isinstance(total, int) and total < 0:
            raise Inexpressible(f"its output_shape {given} is larger than the convolution's {size}")
        half = quotient(total, 2)
        other = simplest(total - half)
        result.append((half, other) if auto == "SAME_UPPER" else (other, half))
    return result


def _matmul(b: Builder, n: Node) -> Operand:
    return matmul(b, n.floats(0), n.floats(1))


def matmul(b: Builder, x: Operand, y: Operand) -> Running:
    """NumPy's product of matrices."""
    if not x.rank or not y.rank:
        raise Inexpressible("it multiplies numbers")
    x = x if isinstance(x, Running) or isinstance(y, Running) else b.running(x)
    b.same(x.sizes[-1], y.sizes[-2] if y.rank > 1 else y.sizes[0])
    rows = () if x.rank == 1 else (x.sizes[-2],)
    columns = () if y.rank == 1 else (y.sizes[-1],)
    sizes = (*b.broadcast(x.sizes[:-2], y.sizes[:-2]), *rows, *columns)
    return b.call(aten.matmul.default, b.argument(x), b.argument(y), sizes=sizes)


def _gemm(b: Builder, n: Node) -> Operand:
    """alpha · A B + beta · C."""
    x, y, bias = n.floats(0), n.floats(1), n.optional(2)
    alpha, beta = n.get("alpha", 1.0), n.get("beta", 1.0)
    x = b.permute(x, [1, 0]) if n.get("transA", 0) else x
    if isinstance(y, Constant) and isinstance(x, Running):
        weight = y.array if n.get("transB", 0) else np.ascontiguousarray(y.array.T)
        same = weight is y.array and alpha == 1
        linear = y if same else Constant(weight * np.float32(alpha) if alpha != 1 else weight, y.name)
        vector, rest = _bias_vector(bias, weight.shape[0], beta)
        b.same(x.sizes[1], weight.shape[1])
        args = [x.value, b.tensor(linear), None if vector is None else b.tensor(vector)]
        z = b.call(aten.linear.default, *args, sizes=(x.sizes[0], weight.shape[0]))
        alpha = 1.0
    else:
        z = matmul(b, x, b.permute(y, [1, 0]) if n.get("transB", 0) else y)
        rest = bias
    if alpha != 1:
        z = b.pointwise(aten.mul.Tensor, z, alpha)
    if rest is None or beta == 0:
        return z
    return b.pointwise(aten.add.Tensor, z, rest if beta == 1 else b.pointwise(aten.mul.Tensor, rest, beta))


def _bias_vector(bias: Operand | None, columns: int, beta: float) -> tuple[Constant | None, Operand | None]:
    """The bias as one number for each column, if it is constant and such; or else as it is, second."""
    if not isinstance(bias, Constant) or (bias.array.size != 1 and bias.array.shape not in ((columns,), (1, columns))):
        return None, bias
    if bias.array.shape == (columns,) and beta == 1:
        return bias, None
    numbers = np.broadcast_to(bias.array.reshape(-1) * np.float32(beta), (columns,))
    return Constant(np.ascontiguousarray(numbers, dtype=np.float32), bias.name), None


def _einsum(b: Builder, n: Node) -> Operand:
    equation = n.get("equation").replace(" ", "")
    tensors = [n.floats(i) for i in range(len(n.inputs))]
    left, arrow, result = equation.partition("->")
    if "." in equation:
        raise Inexpressible(f"its equation is {equation!r}; expressed are those without an ellipsis")
    if not arrow:
        result = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    lengths: dict[str, Size] = {}
    for term, x in zip(left.split(","), tensors, strict=True):
        for letter, size in zip(term, x.sizes, strict=True):
            known = lengths.setdefault(letter, size)
            lengths[letter] = size if known == 1 else known if size == 1 else b.same(known, size)
    if not any(isinstance(x, Running) for x in tensors):
        tensors[0] = b.running(tensors[0])
    args = [b.argument(x) for x in tensors]
    return b.call(aten.einsum.default, f"{left}->{result}", args, sizes=[lengths[c] for c in result])


HANDLERS = by_name(
    {
        "Conv": _convolution,
        "ConvTranspose": _transposed,
        "MatMul": _matmul,
        "Gemm": _gemm,
        "Einsum": _einsum,
    }
)
