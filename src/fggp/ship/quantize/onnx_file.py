"""The ONNX file of a network of whole numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_structure

from fggp.ship.graph import interpret
from fggp.ship.graph.onnx_file import ANY_BATCH, write_onnx
from fggp.ship.graph.operations import Graph
from fggp.ship.network.describe import named_outputs
from fggp.ship.quantize.nodes import with_nodes


def write(graph: Graph, path: Path) -> None:
    """Write a network as ONNX. Batches may have any size if it takes any; all other sizes are those of its example.

    Args:
        graph: of a quantised network.
        path: the file.

    Raises:
        ExportError: PyTorch cannot write it.
    """
    floats = with_nodes(graph)
    outputs = {name: x for name, x in named_outputs(floats) if x is not None}
    flat = tuple(outputs.values())
    traced = _Traced(replace(floats, outputs=flat, out_spec=tree_structure(flat)))
    inputs = {v.name: torch.zeros((2, *v.shape[1:]) if v.batched else v.shape, dtype=v.dtype) for v in graph.inputs}
    shapes = tuple(ANY_BATCH if v.batched else None for v in graph.inputs)
    with torch.no_grad():  # or else the trace would have a graph of its own inside
        write_onnx(traced, inputs, list(outputs), path, {"inputs": shapes})


class _Traced(nn.Module):
    """A graph that PyTorch's exporter traces."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return interpret.run(self.graph, inputs)
