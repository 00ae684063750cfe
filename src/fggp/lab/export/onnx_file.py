"""A network as an ONNX file for any batch size, zeros included, and its outputs in ONNX Runtime."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from fggp.lab.base.errors import UsageError
from fggp.ship.graph import onnx_file as ship

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

TOLERANCE = 1e-4
"""Relative: more than a different order of additions causes, less than any mistake does."""


def check_packages() -> None:
    """Check that the packages for writing and running ONNX files are installed.

    Raises:
        UsageError: naming those that are not.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UsageError(f"ONNX needs {', '.join(missing)}: pip install 'fggp[onnx]'")


def write_onnx(
    model: nn.Module, inputs: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a network as ONNX; if that fails, an existing file stays as it is.

    Args:
        model: on the CPU, in evaluation mode.
        inputs: an example of its arguments, in order, by their names in the file. Dimension 0 is the batch; the file
            takes any size.
        path: the file.
        metadata: texts by name, kept in the file.

    Raises:
        UsageError: PyTorch cannot write this network for batches of any size.
    """
    check_packages()
    two = {name: torch.cat([x[:1]] * 2) for name, x in inputs.items()}
    try:
        ship.write_onnx(model, two, ["output"], path, tuple(ship.ANY_BATCH for _ in two), metadata)
    except ship.ExportError as error:
        raise UsageError(str(error)) from error


@torch.no_grad()
def onnx_difference(path: Path, model: nn.Module, inputs: Mapping[str, Tensor]) -> float:
    """Compare a file's outputs in ONNX Runtime with PyTorch's, on batches of one, two and all examples.

    Args:
        path: the file.
        model: the network that it was written from.
        inputs: examples, named as in the file.

    Returns:
        The largest `relative_difference`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for size in (1, 2, None):
        part = {name: x[:size] for name, x in inputs.items()}
        theirs = torch.from_numpy(session.run(None, {name: x.numpy() for name, x in part.items()})[0])
        largest = max(largest, relative_difference(theirs, model(*part.values())))
    return largest


def relative_difference(ours: Tensor, expected: Tensor) -> float:
    """Return ‖ours − expected‖ / ‖expected‖; infinite if either holds a NaN."""
    distance = (ours.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)
    return float(distance.nan_to_num(nan=float("inf")))
