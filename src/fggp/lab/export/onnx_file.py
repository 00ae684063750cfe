"""A network as an ONNX file, for any batch size, its zeros in place; and whether ONNX Runtime makes the same of it."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from fggp.atomic import atomic_path
from fggp.lab.base.errors import UsageError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

BATCH = "batch"
"""What the file calls the size of dimension 0 of every input."""

# More than another order of additions makes, less than any mistake would.
TOLERANCE = 1e-4


def missing_packages() -> list[str]:
    """Name what is not installed of what it takes to write and check ONNX files."""
    return [name for name in PACKAGES if find_spec(name) is None]


def check_packages() -> None:
    """Refuse to go on without the packages that ONNX takes.

    Raises:
        UsageError: naming those that are not installed.
    """
    if missing := missing_packages():
        raise UsageError(f"ONNX needs {', '.join(missing)}: pip install 'fggp[onnx]'")


def write_onnx(
    model: nn.Module, inputs: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a network as ONNX; a failure leaves what was there.

    Args:
        model: on the CPU, in evaluation mode.
        inputs: an example of its arguments, in their order, and what the file calls them. Dimension 0 is the batch, of
            any size.
        path: the file.
        metadata: texts by name to keep in it.

    Raises:
        UsageError: PyTorch cannot write this network for batches of any size.
    """
    check_packages()
    # The exporter would take a batch of one for a constant.
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
                _add(metadata, partial)
    except Exception as error:  # whatever the exporter and the tracer below it raise
        cause = error.__cause__ or error
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise UsageError(f"PyTorch cannot write this network as ONNX: {reason}") from error


def _add(metadata: Mapping[str, str], path: Path) -> None:
    import onnx

    written = onnx.load(path)
    for name, text in metadata.items():
        written.metadata_props.add(key=name, value=text)
    onnx.save(written, path)


@torch.no_grad()
def onnx_difference(path: Path, model: nn.Module, inputs: Mapping[str, Tensor]) -> float:
    """Run a file in ONNX Runtime, in batches of several sizes, and compare with PyTorch.

    Args:
        path: the file.
        model: what it was written from.
        inputs: named as in the file, of one batch size; batches of one, two and all of it are compared.

    Returns:
        The largest distance of an output from PyTorch's, relative to that one's size.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    most = 0.0
    for size in (1, 2, None):
        part = {name: x[:size] for name, x in inputs.items()}
        theirs = torch.from_numpy(session.run(None, {name: x.numpy() for name, x in part.items()})[0])
        most = max(most, relative_difference(theirs, model(*part.values())))
    return most


def relative_difference(ours: Tensor, expected: Tensor) -> float:
    """Return ‖ours − expected‖ / ‖expected‖; infinite where something is not a number."""
    distance = (ours.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)
    return float(distance.nan_to_num(nan=float("inf")))
