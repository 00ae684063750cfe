"""What a file of any version stores of a tensor, and its comparison with the tensor of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fggp.ship.file import planes
from fggp.ship.file.container import FileRefusedError
from fggp.ship.file.state import ModelTensor
from fggp.text import listing


@dataclass(frozen=True)
class TensorType:
    """A tensor's dtype and shape. The shape of a tensor in a file may be any integers until `check_same_model`."""

    dtype: torch.dtype
    shape: list[int]

    def __str__(self) -> str:
        return _text(self.dtype, self.shape)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of the saved state dict, as a file stores it.

    Args:
        dtype: of the tensor.
        value_dtype: of the stored values, which may have been rounded to a narrower one.
        planes: the values as `planes.split` makes them: all elements, or the non-zero ones.
        gaps: the positions of the non-zero ones, uint8 [m]; None where the tensor is stored dense.
    """

    dtype: torch.dtype
    value_dtype: torch.dtype
    planes: Sequence[Tensor]
    gaps: Tensor | None

    def count(self) -> int:
        """The number of stored values."""
        return sum(plane.nbytes for plane in self.planes) // self.value_dtype.itemsize

    def values(self, begin: int, end: int) -> Tensor:
        """The stored values from ``begin`` to ``end``, as the tensor has them, [end − begin]."""
        return planes.join(self.planes, self.value_dtype, begin, end).to(self.dtype)


def check_same_model(types: Mapping[str, TensorType], tensors: Mapping[str, ModelTensor]) -> None:
    """Compare the tensors that a file says it has with those of the model.

    Raises:
        FileRefusedError: a name, dtype or shape differs.
    """
    missing = [name for name in tensors if name not in types]
    unexpected = [name for name in types if name not in tensors]
    if missing or unexpected:
        lacks = [f"lacks {listing(missing)}"] if missing else []
        has = [f"has {listing(unexpected)}, which the model lacks"] if unexpected else []
        raise FileRefusedError(f"is of another model: it {', and '.join(lacks + has)}")
    different = []
    for name, own in types.items():
        tensor = tensors[name].tensor
        if (own.dtype, own.shape) != (tensor.dtype, list(tensor.shape)):
            different.append(f"{name!r} is {own!s:.80} in the file, {_text(tensor.dtype, tensor.shape)} in the model")
    if different:
        more = f"; and {len(different) - 4} more" if len(different) > 4 else ""
        raise FileRefusedError(f"is of another model: {'; '.join(different[:4])}{more}")


def _text(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
