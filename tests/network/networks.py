"""The library's networks, for tests: a description and tensors go in, and what it computes comes out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import CDLL, byref, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fggp import native
from fggp.ship.graph.operations import Graph
from fggp.ship.network.describe import describe
from fggp.ship.runtime import library as networks
from fggp.ship.runtime.library import REFUSED as REFUSED  # importable from here too
from fggp.ship.runtime.library import RefusedError

Refused = RefusedError


@cache
def library() -> CDLL:
    """The best build for this processor, or the one that FGGP_TEST_LIBRARY names."""
    chosen = os.environ.get("FGGP_TEST_LIBRARY")
    return networks.declared(native.open_library(Path(chosen)) if chosen else native.load())


class Network(networks.Network):
    """A network whose inputs and outputs are named by texts."""

    def run(self, inputs: Mapping[str, Tensor], threads: int = 1) -> dict[str, Tensor]:
        """The outputs, in new tensors."""
        results = super().run(_encoded(inputs), threads)
        return dict(zip(self.description["outputs"], results, strict=True))

    def profile(self, inputs: Mapping[str, Tensor], threads: int = 1) -> dict[str, Any]:
        """The steps for these inputs, and their memory."""
        return super().profile(_encoded(inputs), threads)


def _encoded(inputs: Mapping[str, Tensor]) -> dict[bytes, Tensor]:
    return {name.encode(): x for name, x in inputs.items()}


def build(
    description: Mapping[str, Any] | bytes,
    tensors: Mapping[str, Tensor] | None = None,
    on: CDLL | None = None,
) -> Network:
    """A network of a description, as docs/network-file.md defines it, and the tensors that it names.

    Raises:
        Refused: the library refuses it.
    """
    return Network.build(description, tensors or {}, networks.declared(on) if on else library())


def network_of(graph: Graph, plan: Mapping[str, Any], on: CDLL | None = None) -> Network:
    """A network of a graph.

    Args:
        graph: simplified.
        plan: the description's entry "plan".
        on: the build that runs it; None: `library`.
    """
    description = describe(graph)
    return build({**description.network, "plan": plan}, description.tensors, on)


def load(path: Path) -> Network:
    """A network of a file.

    Raises:
        Refused: the library refuses it.
    """
    handle = c_void_p()
    status = library().fggp_load(os.fsencode(path), byref(handle))
    return Network(library(), handle, status)


def load_bytes(raw: bytes) -> Network:
    """A network of a file's bytes.

    Raises:
        Refused: the library refuses it.
    """
    handle = c_void_p()
    status = library().fggp_load_bytes(raw, len(raw), byref(handle))
    return Network(library(), handle, status)


def run_one(
    op: str, inputs: Sequence[Tensor | None], constant: Sequence[int] = (), *, threads: int = 2, **attributes: Any
) -> Tensor | tuple[Tensor, ...]:
    """Run one operation.

    Args:
        op: the operator.
        inputs: what it reads; None: absent.
        constant: the places of inputs that the network brings, instead of being given to it.
        threads: the number of threads.
        attributes: of the operation. "outputs" is the number of outputs, 1 by default.

    Returns:
        The output, or a tuple of all if "outputs" is given.
    """
    names = [None if x is None else f"input{i}" for i, x in enumerate(inputs)]
    given = [i for i, x in enumerate(inputs) if x is not None and i not in constant]
    count = attributes.get("outputs", 1)
    description = {
        "inputs": [
            {
                "name": names[i],
                "type": {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}[x.dtype],
                "shape": list(x.shape),
            }
            for i in given
            if (x := inputs[i]) is not None
        ],
        "nodes": [
            {
                "op": op,
                "name": "tested",
                "in": [given.index(i) if i in given else names[i] for i in range(len(inputs))],
                **attributes,
            }
        ],
        "outputs": [{"name": f"output{i}", "value": len(given) + i} for i in range(count)],
    }
    tensors = {f"input{i}": x for i in constant if (x := inputs[i]) is not None}
    with closing(build(description, tensors)) as network:
        results = network.run({f"input{i}": x for i in given if (x := inputs[i]) is not None}, threads)
    found = tuple(results[f"output{i}"] for i in range(count))
    return found if "outputs" in attributes else found[0]


@contextmanager
def closing(network: Network) -> Iterator[Network]:
    """Free a network at the end of a block."""
    try:
        yield network
    finally:
        network.close()
