"""Network files for tests without PyTorch, with inputs and what PyTorch computes of them.

`python tests/deploy/network_files.py FOLDER` writes them, for fggp-runtime's own tests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fggp.ship.network.write import write

RELU = ["clamp", 0, "inf"]
MEAN, STD, CLASSES = [120.0, 110.5, 100.25], [60.0, 55.5, 50.25], ["cat", "dog", "été"]


def pruned(*shape: int) -> Tensor:
    """A weight of which nine in ten are zero."""
    return torch.randn(shape) * (torch.rand(shape) < 0.1)


def image(folder: Path) -> None:
    """A network that classifies images of any size; an image of 24 × 20 pixels; and the scores of its classes."""
    w1, b1, w2, b2 = pruned(16, 3, 3, 3), torch.randn(16), pruned(24, 16, 3, 3), torch.randn(24)
    w3, b3 = torch.randn(len(CLASSES), 24), torch.randn(len(CLASSES))
    conv = {"op": "conv", "dilation": [1, 1], "groups": 1, "padding": [1, 1], "activation": RELU}
    pool = {"op": "max_pool", "kernel": [2, 2], "stride": [2, 2], "padding": [0, 0], "dilation": [1, 1], "ceil": False}
    description = {
        "inputs": [{"name": "x", "type": "F32", "shape": ["N", 3, "H", "W"]}],
        "nodes": [
            {"name": "first", "in": [0, "w1", "b1"], "stride": [1, 1], **conv},
            {"name": "pool", "in": [1], **pool},
            {"name": "second", "in": [2, "w2", "b2"], "stride": [2, 2], **conv},
            {"op": "adaptive_average_pool", "in": [3], "size": [1, 1]},
            {"op": "flatten", "in": [4]},
            {"op": "linear", "name": "head", "in": [5, "w3", "b3"]},
        ],
        "outputs": [{"name": "scores", "value": 6}],
    }
    tensors = {"w1": w1, "b1": b1, "w2": w2, "b2": b2, "w3": w3, "b3": b3}
    preparation = {"shape": [3, 24, 20], "mean": MEAN, "std": STD, "classes": CLASSES}
    write(folder / "image.fggp", description, tensors, {"input": json.dumps(preparation), "author": "an “A”"})

    pixels = torch.randint(256, (24, 20, 3), dtype=torch.uint8)
    (folder / "image.ppm").write_bytes(b"P6\n20 24\n255\n" + bytes(pixels.flatten().tolist()))
    x = ((pixels.double() - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None]
    w1, b1, w2, b2, w3, b3 = (tensor.double() for tensor in tensors.values())
    hidden = F.max_pool2d(F.relu(F.conv2d(x, w1, b1, padding=1)), 2)
    hidden = F.relu(F.conv2d(hidden, w2, b2, stride=2, padding=1))
    save(folder / "image", x=x.float(), scores=F.linear(hidden.mean((2, 3)), w3, b3).float())


def text(folder: Path) -> None:
    """A network of two inputs and three outputs of all types; token numbers and a mask; and the outputs."""
    table, weight = torch.randn(50, 8), pruned(12, 8)
    description = {
        "inputs": [
            {"name": "ids", "type": "I64", "shape": ["N", "L"]},
            {"name": "mask", "type": "BOOL", "shape": ["N", "L"]},
        ],
        "nodes": [
            {"op": "take", "name": "embedding", "in": ["table", 0], "dim": 0},
            {"op": "linear", "name": "hidden", "in": [2, "weight"]},
            {"op": "binary", "in": [0, 0], "function": "add"},
            {"op": "unary", "in": [1], "function": "not"},
        ],
        "outputs": [{"name": "hidden", "value": 3}, {"name": "doubled", "value": 4}, {"name": "unmasked", "value": 5}],
    }
    write(folder / "text.fggp", description, {"table": table, "weight": weight}, {})
    ids, mask = torch.randint(50, (2, 5)), torch.rand(2, 5) < 0.5
    hidden = F.linear(table[ids].double(), weight.double()).float()
    save(folder / "text", ids=ids, mask=mask, hidden=hidden, doubled=2 * ids, unmasked=~mask)


def save(path: Path, **tensors: Tensor) -> None:
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.savez(path, **arrays)


def write_all(folder: Path) -> None:
    torch.manual_seed(0)
    image(folder)
    text(folder)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
