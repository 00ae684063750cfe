"""Writing a module as an ONNX file with PyTorch's exporter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fggp.atomic import atomic_path

ANY_BATCH = {0: torch.export.Dim("batch")}
"""The dynamic shape of a tensor whose dimension 0 is the batch."""


class ExportError(RuntimeError):
    """PyTorch cannot write a network as ONNX; the message names the operator, or says what else is in the way."""


def write_onnx(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    path: Path,
    dynamic_shapes: Any,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a module as ONNX; if that fails, an existing file stays as it is. Needs onnx and onnxscript.

    Args:
        model: on the CPU, in evaluation mode.
        inputs: an example of its arguments, in order, by their names in the file. A batch that is to be free must be
            two or more, because the exporter takes one as a constant.
        outputs: their names in the file.
        path: the file.
        dynamic_shapes: as `torch.export.export` takes them; `ANY_BATCH` for an argument whose batch is free.
        metadata: texts by name, kept in the file.

    Raises:
        ExportError: PyTorch cannot write this network.
    """
    try:
        with atomic_path(path) as partial:
            program = torch.onnx.export(
                model,
                tuple(inputs.values()),
                str(partial),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=dynamic_shapes,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            assert program is not None  # as always with dynamo
            # The exporter falls back to constant sizes without a word.
            free = tree_leaves(dynamic_shapes, is_leaf=lambda shape: shape is None or shape is ANY_BATCH)
            for value, shape in zip(program.model.graph.inputs, free, strict=True):
                sizes = value.shape
                if shape is not None and sizes is not None and isinstance(sizes[0], int):
                    raise RuntimeError(f"its operations fix the batch size of the input {value.name!r}")
            if metadata:
                _add_metadata(partial, metadata)
    except Exception as error:  # the exporter and the tracer below it can raise anything
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise ExportError(f"PyTorch cannot write this network as ONNX: {reason}") from error


def _add_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    import onnx

    written = onnx.load(path)
    for name, text in metadata.items():
        written.metadata_props.add(key=name, value=text)
    onnx.save(written, path)
