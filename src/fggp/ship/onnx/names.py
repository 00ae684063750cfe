"""Names of free sizes."""

from __future__ import annotations

import keyword
from collections.abc import Sequence

import onnx


def named_sizes(inputs: Sequence[onnx.ValueInfoProto]) -> dict[str, list[tuple[str, int | None]]]:
    """The name of each dimension of each input, and its size; None if that is free.

    A name of the file is kept if it is an identifier. Others, such as "p2o.DynamicDimension.0", and dimensions without
    a name become N for dimension 0, H and W for images, S for others.
    """
    renamed: dict[str, str] = {}
    texts = [d.dim_param for v in inputs for d in v.type.tensor_type.shape.dim]
    taken = {t for t in texts if _is_name(t)}

    def name(param: str, dim: int, rank: int) -> str:
        if _is_name(param):
            return param
        if param in renamed and param != "?":
            return renamed[param]
        base = "N" if dim == 0 else "DHW"[dim - rank] if rank > 3 and dim > 1 else "C" if rank > 3 else "S"
        candidates = [base, *(f"{base}{i}" for i in range(2, len(taken) + 3))]
        # An unnamed dimension 0 is the batch of all inputs.
        found = "N" if base == "N" and not param else next(c for c in candidates if c not in taken)
        taken.add(found)
        if param:
            renamed[param] = found
        return found

    result: dict[str, list[tuple[str, int | None]]] = {}
    for v in inputs:
        dims = v.type.tensor_type.shape.dim
        result[v.name] = [
            ("", int(d.dim_value))
            if d.HasField("dim_value") and d.dim_value > 0
            else (name(d.dim_param, i, len(dims)), None)
            for i, d in enumerate(dims)
        ]
    return result


def _is_name(param: str) -> bool:
    return param.isidentifier() and param.isascii() and not keyword.iskeyword(param) and param not in ("Max", "Min")
