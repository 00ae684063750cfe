"""Shapes of weights, which show for how many classes and channels their network was built."""

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from fggp.ship.file import container, frames
from fggp.ship.file.container import FileRefusedError
from fggp.ship.file.version2 import LENGTH_BYTES


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of a network's parameters and buffers."""
    return {name: tensor.shape for name, tensor in chain(model.named_parameters(), model.named_buffers())}


def size_in(
    shapes: Mapping[str, Sequence[int]], smaller: Mapping[str, torch.Size], larger: Mapping[str, torch.Size]
) -> int | None:
    """Return the size of weights in the first dimension in which two networks differ; None if they have none such.

    Args:
        shapes: of the weights.
        smaller, larger: shapes of the network, built for a class or a channel less and more.
    """
    for name, shape in smaller.items():
        for dim, (a, b) in enumerate(zip(shape, larger[name], strict=True)):
            if a != b and len(shapes.get(name, ())) == len(shape):
                return shapes[name][dim]
    return None


def shapes_in_small_file(file: Path, names: Collection[str]) -> dict[str, list[int]]:
    """Return the shapes that a small file's index names; none of a file that is damaged, or of version 1.

    Args:
        file: it is read again by `fggp.load`, which says what is wrong with it.
        names: of the tensors of a network of this kind, which bound the index.
    """
    try:
        with file.open("rb") as opened:
            header = container.read_header(opened, names)
            if header.version == "1":
                return {}
            data = memoryview(container.read_data(opened, header))
        end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
        limit = container.description_limit(names)
        index = container.parse_json(frames.decompress(data[LENGTH_BYTES:end], 0, limit, "its index"), "its index")
    except FileRefusedError:
        return {}
    shapes: dict[str, list[int]] = {}
    for entry in index["tensors"]:
        match entry:
            case [str(name), str(), [*shape], *_]:  # a tensor that is tied to another one has its shape there
                shapes[name] = shape
    return shapes
