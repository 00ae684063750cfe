"""A network as an ONNX file for any batch size, zeros included, and its outputs in ONNX Runtime."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from fggp.atomic import atomic_path
from fggp.lab.base.errors import UsageError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

BATCH = "batch"
"""The file's name for the size of dimension 0 of every input."""

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
    # Not a batch of one, which the exporter treats as a constant.
    two = tuple(torch.cat([x[:1]] * 2) for x in inputs.values())
    batch = torch.export.Dim(BATCH)
    try:
        with atomic_path(path) as partial:
            torch.onnx.export(
                model,
                two,
                str(partial),
                input_names=list(inputs),
                output_names=["output"],
                dynamic_shapes=tuple({0: batch} for _ in two),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            if metadata:
                _add_metadata(partial, metadata)
    except Exception as error:  # the exporter and the tracer below it can raise anything
        cause = error.__cause__ or error
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise UsageError(f"PyTorch cannot write this network as ONNX: {reason}") from error


def _add_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    import onnx

    written = onnx.load(path)
    for name, text in metadata.items():
        written.metadata_props.add(key=name, value=text)
    onnx.save(written, path)


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
