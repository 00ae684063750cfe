"""Products: convolutions, linear layers, products of matrices, attention."""

from __future__ import annotations

from typing import Any

import torch

from fggp.ship.graph.calls import Call
from fggp.ship.network.aten.common import by_dimension, floats, number, optional, sizes_of
from fggp.ship.network.description import Inexpressible
from fggp.ship.network.nodes import Handler, Operand, Writer
from fggp.ship.network.sizes import Size, product

aten = torch.ops.aten


def _convolution(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, weight, bias = floats(w, a["input"]), floats(w, a["weight"], "weight"), optional(w, a["bias"], "bias")
    count = weight.rank - 2
    transposed = call.target in _TRANSPOSED or a.get("transposed", False)
    single = x.rank == count + 1  # an image without a batch
    if single:
        x = w.reshape(x, (1, *x.sizes))
    dilation, padding = by_dimension(a["dilation"], count), a["padding"]
    if isinstance(padding, str):
        x, padding = _padded(w, x, padding, [d * (int(k) - 1) for d, k in zip(dilation, weight.sizes[2:], strict=True)])
    attributes = {
        "stride": by_dimension(a["stride"], count),
        "padding": by_dimension(padding, count),
        "dilation": dilation,
        "groups": a["groups"],
    }
    if transposed:
        attributes["output_padding"] = by_dimension(a["output_padding"], count)
    sizes = (1, *sizes_of(call)) if single else sizes_of(call)
    y = w.node("conv_transpose" if transposed else "conv", [x, weight, bias], torch.float32, sizes, **attributes)
    return w.reshape(y, sizes_of(call)) if single else y


def _padded(w: Writer, x: Operand, padding: str, total: list[int]) -> tuple[Operand, list[int]]:
    """The input and the padding on both sides of it, for padding "same" or "valid"."""
    if padding == "valid":
        return x, [0 for _ in total]
    if all(t % 2 == 0 for t in total):
        return x, [t // 2 for t in total]
    pads = [0, 0, 0, 0, *(pad for t in total for pad in (t // 2, t - t // 2))]
    sizes = [*x.sizes[:2], *(f"({s}) + {t}" if isinstance(s, str) else s + t for s, t in zip(x.sizes[2:], total))]  # noqa: B905
    return w.node("pad", [x], x.dtype, sizes, pads=pads, mode="constant", value=0), [0 for _ in total]


def _linear(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, weight, bias = floats(w, a["input"]), floats(w, a["weight"], "weight"), optional(w, a["bias"], "bias")
    return w.node("linear", [x, weight, bias], torch.float32, sizes_of(call))


def _matmul(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    return _product(w, floats(w, a["self"]), floats(w, a.get("other", a.get("mat2", a.get("vec")))), sizes_of(call))


def _product(w: Writer, x: Operand, y: Operand, sizes: Any) -> Operand:
    """`torch.matmul`: vectors become matrices of one row or column."""
    rows, columns = x.rank > 1, y.rank > 1
    x = x if rows else w.reshape(x, (1, *x.sizes))
    y = y if columns else w.reshape(y, (*y.sizes, 1))
    return w.reshape(w.matmul(x, y), sizes)


def _addmm(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, y = (floats(w, a[key]) for key in (("mat1", "mat2") if "mat1" in a else ("batch1", "batch2")))
    return _added(w, w.matmul(x, y), a, call)


def _addmv(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    return _added(w, _product(w, floats(w, a["mat"]), floats(w, a["vec"]), sizes_of(call)), a, call)


def _added(w: Writer, y: Operand, a: dict[str, Any], call: Call) -> Operand:
    """beta · self + alpha · y."""
    bias = floats(w, a["self"], "self")
    alpha, beta = number(a["alpha"], "alpha"), number(a["beta"], "beta")
    y = y if alpha == 1 else w.with_number("mul", y, alpha)
    if beta == 0:
        return y
    return w.binary("add", bias if beta == 1 else w.with_number("mul", bias, beta), y)


def _outer(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, y = floats(w, a["self"]), floats(w, a["vec2"])
    return w.binary("mul", w.reshape(x, (*x.sizes, 1)), y)


def _attention(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    if a["dropout_p"]:
        raise Inexpressible(f"its dropout_p is {a['dropout_p']}, and results of the file are not random")
    inputs = [floats(w, a[key], key) for key in ("query", "key", "value")]
    mask = optional(w, a["attn_mask"], "attn_mask")
    causal, scale = a["is_causal"] or None, a["scale"]
    return w.node("attention", [*inputs, mask], torch.float32, sizes_of(call), causal=causal, scale=scale)


def _einsum(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    """A sum of products of one or two tensors, as a product of matrices."""
    equation = a["equation"].replace(" ", "")
    tensors = [floats(w, x) for x in a["tensors"]]
    left, _, result = equation.partition("->")
    terms = left.split(",")
    if "->" not in equation:
        letters = sorted(left.replace(",", "").replace(".", ""))
        result = ("..." if "..." in left else "") + "".join(c for c in letters if letters.count(c) == 1)
    if (
        len(terms) > 2
        or len(terms) != len(tensors)
        or any(len(set(t) - {"."}) != len(t.replace(".", "")) for t in terms)
    ):
        raise Inexpressible(
            f"its equation is {a['equation']!r}; expressed are those of one or two tensors and no diagonal"
        )
    terms, result = _spelled_out(terms, result, tensors)
    lengths: dict[str, Size] = {}
    for term, x in zip(terms, tensors, strict=True):
        for letter, size in zip(term, x.sizes, strict=True):
            if lengths.setdefault(letter, size) == 1:
                lengths[letter] = size
    parts = []
    for i, (term, x) in enumerate(zip(terms, tensors, strict=True)):
        elsewhere = result + "".join(terms[:i] + terms[i + 1 :])
        summed = [dim for dim, letter in enumerate(term) if letter not in elsewhere]
        parts.append(w.reduce("sum", x, summed, keep=False) if summed else x)
        terms[i] = "".join(letter for letter in term if letter in elsewhere)
    if len(parts) == 1:
        return w.permute(parts[0], [terms[0].index(letter) for letter in result])
    (s, t), (x, y) = terms, parts
    batch = [c for c in s if c in t and c in result]
    inner = [c for c in s if c in t and c not in result]
    rows, columns = [c for c in s if c not in t], [c for c in t if c not in s]

    def as_matrices(x: Operand, term: str, first: list[str], second: list[str]) -> Operand:
        letters = [*batch, *first, *second]
        x = w.permute(x, [term.index(c) for c in letters])
        x = w.expand(x, [lengths[c] for c in letters])
        shape = [*(lengths[c] for c in batch), product(lengths[c] for c in first), product(lengths[c] for c in second)]
        return w.reshape(x, shape)

    y = w.matmul(as_matrices(x, s, rows, inner), as_matrices(y, t, inner, columns))
    letters = [*batch, *rows, *columns]
    y = w.reshape(y, [lengths[c] for c in letters])
    return w.permute(y, [letters.index(c) for c in result])


def _spelled_out(terms: list[str], result: str, tensors: list[Operand]) -> tuple[list[str], str]:
    """The terms with letters in place of "…"."""
    counts = [x.rank - len(term.replace("...", "")) for term, x in zip(terms, tensors, strict=True)]
    free = "".join(chr(ord("α") + i) for i in range(max(counts)))
    named = [term.replace("...", free[len(free) - count :]) for term, count in zip(terms, counts, strict=True)]
    return named, result.replace("...", free)


_TRANSPOSED = frozenset([aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input])
HANDLERS: dict[Any, Handler] = {
    aten.conv1d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv3d.padding: _convolution,
    aten.convolution.default: _convolution,
    **dict.fromkeys(_TRANSPOSED, _convolution),
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.mv.default: _matmul,
    aten.dot.default: lambda w, call, a: _product(w, floats(w, a["self"]), floats(w, a["tensor"]), sizes_of(call)),
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.addmv.default: _addmv,
    aten.outer.default: _outer,
    aten.scaled_dot_product_attention.default: _attention,
    aten.einsum.default: _einsum,
}
