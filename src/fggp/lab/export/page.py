"""`fggp export --page`: a page that runs a classifier of images in the browser that opens it.

The page is one file: the network, libfggp as WebAssembly and the code are inside. It needs no server and no network.
"""

import base64
import gzip
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fggp import native
from fggp.lab.base.errors import UsageError
from fggp.ship.network.description import Description
from fggp.ship.network.write import VERSION

# A browser loads nothing for a page with this policy.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval'; style-src 'unsafe-inline'; img-src blob: data:"
)
TYPES = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}


def render(
    title: str,
    network: bytes,
    description: Description,
    image: Mapping[str, Any],
    *,
    dense_bytes: int,
    weights: int,
    weights_left: int,
) -> str:
    """Return the page.

    Args:
        title: names the network.
        network: its file, with `image` in the metadata.
        description: what the file holds. The page fills the same network with random weights, to time it dense.
        image: the shape, mean, std and classes of the images.
        dense_bytes: size of the dense network's file.
        weights: number of prunable weights.
        weights_left: those that are not zero.

    Raises:
        UsageError: it is unknown how images are prepared, or the WebAssembly module is missing.
    """
    if not image:
        raise UsageError("a page needs a run of fggp train, which says how images are prepared and what classes are")
    about = {
        "bytes": len(network),
        "denseBytes": dense_bytes,
        "weights": weights,
        "weightsLeft": weights_left,
        "description": {"version": VERSION, **description.network},
        "tensors": {name: _outline(tensor) for name, tensor in description.tensors.items()},
    }
    wasm, library = (_web_folder() / name for name in ("fggp.wasm", "fggp.js"))
    own = files("fggp.lab.export")
    parts = {
        "title": html.escape(title),
        "policy": html.escape(POLICY),
        "style": (own / "page.css").read_text("utf-8"),
        "about": json.dumps(about).replace("<", "\\u003c"),
        "network": _packed(network),
        "wasm": _packed(wasm.read_bytes()),
        "library": library.read_text("utf-8"),
        "script": (own / "page.js").read_text("utf-8"),
    }
    pieces = (own / "page.html").read_text("utf-8").split("@@")
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _outline(tensor: Tensor) -> dict[str, Any]:
    """Type and shape, and the values of what is not a weight."""
    outline: dict[str, Any] = {"type": TYPES[tensor.dtype], "shape": list(tensor.shape)}
    if tensor.dtype != torch.float32:
        outline["values"] = tensor.flatten().tolist()
    return outline


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def _web_folder() -> Path:
    """The npm package's folder: in an installed fggp it is beside the modules, in a clone it is the folder `web`."""
    for folder in (*(Path(each) for each in native.package_folders()), Path(__file__).parents[4]):
        if (folder / "web" / "fggp.wasm").exists():
            return folder / "web"
    raise UsageError("a page needs web/fggp.wasm, which is missing here; `make web` in a clone of fggp compiles it")
