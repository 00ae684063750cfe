"""The table that ``print(pruner)`` shows: one line a layer."""

from __future__ import annotations

from collections.abc import Sequence

from fggp.masks.masks import Masks


def layer_table(masks: Masks) -> list[str]:
    """Each weight's name, shape, size, kept weights and sparsity, and their total, in aligned columns.

    If weights are pruned in groups or keep to a pattern, also the shape of its groups, and of the former how many are
    kept of how many.
    """
    rows = [
        (w.name, "×".join(map(str, w.parameter.shape)), w.parameter.numel(), kept)
        for w, kept in zip(masks.weights, masks.counts, strict=True)
    ]
    rows.append(("total", "", masks.total, masks.active))
    cells = [("weight", "shape", "weights", "kept", "sparsity")]
    cells += [(name, shape, f"{n:,}", f"{kept:,}", f"{1 - kept / max(n, 1):.2%}") for name, shape, n, kept in rows]
    lines = [line + group for line, group in zip(cells, _group_cells(masks), strict=True)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [_line(row, widths) for row in lines]


def _group_cells(masks: Masks) -> list[tuple[str, ...]]:
    """The cells about groups: a title, a line for each weight and one for the total; empty if there are none."""
    grids = [w.grid for w in masks.weights if w.grid is not None]
    if not grids:
        return [()] * (len(masks.weights) + 2)
    shapes = ["×".join(map(str, grid.steps)) for grid in grids]
    if grids[0].limit is not None:
        limits = [(str(grid.limit), shape) for grid, shape in zip(grids, shapes, strict=True)]
        return [("at most", "in"), *limits, ("", "")]
    cells = [("group", "groups", "kept")]
    cells += [(s, f"{grid.units:,}", f"{n:,}") for s, grid, n in zip(shapes, grids, masks.units, strict=True)]
    return [*cells, ("", f"{sum(grid.units for grid in grids):,}", f"{sum(masks.units):,}")]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """The first cell is aligned left, the others right."""
    others = "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
    return f"  {row[0]:<{widths[0]}}  {others}"
