"""Writes a network file: a small file whose index has the description of a network, too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fggp.atomic import atomic_write
from fggp.ship.file import version2
from fggp.ship.file.save import checked_metadata, coded_tensors
from fggp.ship.file.state import ModelTensor

VERSION = 1
"""The version of the description."""
DTYPES = (torch.float32, torch.int64, torch.bool, torch.int8)
"""The dtypes of a network's tensors."""


def write(
    path: str | os.PathLike[str],
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    values: torch.dtype | None = None,
) -> None:
    """Write a network file.

    Tensors of mostly zeros are stored sparse, and those that share their memory once.

    Args:
        path: the file. It is replaced in one step: a crash leaves the old file or the new one.
        description: what docs/network-file.md describes, of JSON's types; the version is added. The numbers that JSON
            lacks are texts in it: "inf", "-inf" and "nan".
        tensors: those that the description names, on any device.
        metadata: texts by name; see `fggp.save`.
        values: ``torch.bfloat16`` rounds the float32 values of tensors that are stored sparse.

    Raises:
        ValueError, TypeError: a tensor or the metadata cannot be stored, or the description is not JSON; the message
            says which, and nothing is written.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_meta:
            kind = "on the meta device" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
            raise ValueError(
                f"tensors[{name!r}] is {kind}; a network holds strided float32, int64, bool and int8 tensors"
            )
    known = {name: ModelTensor(name, tensor) for name, tensor in tensors.items()}
    network = {"version": VERSION, **description}
    parts = version2.encode(checked_metadata(metadata), coded_tensors(known, values), network)
    with atomic_write(Path(path)) as file:
        file.writelines(parts)
