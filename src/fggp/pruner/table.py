"""The table that ``print(pruner)`` shows: one line a layer."""

from __future__ import annotations

from collections.abc import Sequence

from fggp.masks.masks import Masks


def layer_table(masks: Masks) -> list[str]:
    """Each weight's name, shape, size, kept weights and sparsity, and their total, in aligned columns."""
    rows = [
        (w.name, "×".join(map(str, w.parameter.shape)), w.parameter.numel(), kept)
        for w, kept in zip(masks.weights, masks.counts, strict=True)
    ]
    rows.append(("total", "", masks.total, masks.active))
    cells = [("weight", "shape", "weights", "kept", "sparsity")]
    cells += [(name, shape, f"{n:,}", f"{kept:,}", f"{1 - kept / max(n, 1):.2%}") for name, shape, n, kept in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [_line(row, widths) for row in cells]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """The first cell is aligned left, the others right."""
    others = "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
    return f"  {row[0]:<{widths[0]}}  {others}"
