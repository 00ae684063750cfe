"""`fggp export model.onnx`: the network file of an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import fggp
from fggp.lab.base import Json
from fggp.lab.base.errors import UsageError
from fggp.lab.export.onnx_file import TOLERANCE
from fggp.native import KernelsMissingError
from fggp.ship.network.description import UnsupportedError

# ONNX Runtime rounds what it computes to 16 bits, and fggp to 32.
HALF_TOLERANCE = 1e-2


def export_from_onnx(
    source: Path, out: Path, console: Console, *, values: torch.dtype | None = None, fixed: Mapping[str, Any]
) -> Json:
    """Write the network file of an ONNX file, if the network computes what ONNX Runtime does.

    Args:
        source: the ONNX file.
        out: the network file.
        console: where it is said.
        values, fixed: as in `fggp.from_onnx` and its ``save``. What is compared is the network before its values are
            rounded.

    Returns:
        ``bytes`` of both files, and ``onnx_difference``, relative, where ONNX Runtime and fggp's kernels are installed.

    Raises:
        UsageError: the network file cannot hold the network, or computes something else.
    """
    try:
        net = fggp.from_onnx(source, fixed=fixed)
    except UnsupportedError as error:
        raise UsageError(str(error)) from error
    except (ModuleNotFoundError, OSError, ValueError) as error:
        raise UsageError(f"{source} cannot be read: {error}") from error
    difference, reason = _difference(source, net, fixed)
    tolerance = HALF_TOLERANCE if _in_half_precision(source) else TOLERANCE
    if difference is not None and difference > tolerance:
        raise UsageError(
            f"the network's outputs differ from ONNX Runtime's by {difference:.1e} of the largest, more than "
            f"{tolerance:.0e}; {out} is not written"
        )
    net.save(out, values=values)
    before, after = _bytes(source), out.stat().st_size
    checked = reason if difference is None else f"ONNX Runtime is off by {difference:.0e} on random inputs"
    console.print(str(net), highlight=False, markup=False, soft_wrap=True)
    console.print(f"  {'ONNX':12}{before:13,} bytes", highlight=False)
    line = f"  {'network':12}{after:13,} bytes {before / after:6.1f}× smaller  {out}  {checked}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    result: Json = {"bytes": {"onnx": before, "network": after}}
    return result if difference is None else {**result, "onnx_difference": difference}


def _in_half_precision(source: Path) -> bool:
    """Whether ONNX Runtime computes with 16 bits somewhere."""
    import onnx

    model = onnx.load(source, load_external_data=False)
    half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    return any(t.data_type in half for t in model.graph.initializer) or any(
        v.type.tensor_type.elem_type in half for v in (*model.graph.input, *model.graph.output)
    )


def _bytes(source: Path) -> int:
    """The size of an ONNX file, with the weights that it keeps in others."""
    import onnx

    model = onnx.load(source, load_external_data=False)
    files = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    return sum(file.stat().st_size for file in (source, *(source.parent / name for name in files)))


def _difference(source: Path, net: fggp.Imported, fixed: Mapping[str, Any]) -> tuple[float | None, str]:
    """The largest difference from ONNX Runtime's outputs, relative to the largest of them; or why there is none."""
    example = net.example()
    if example is None or find_spec("onnxruntime") is None:
        return None, "not compared: " + ("onnxruntime is not installed" if example else "no fitting sizes were found")
    try:
        ours: Any = net(**example)
    except KernelsMissingError:
        return None, "not compared: fggp's kernels are not installed"
    except ValueError as error:  # random inputs may be none that the network takes
        return None, f"not compared: {str(error).splitlines()[0]}"
    theirs = _by_onnxruntime(source, {**example, **{name: torch.as_tensor(x) for name, x in fixed.items()}})
    if isinstance(theirs, str):
        return None, f"not compared, ONNX Runtime says: {theirs}"
    results: list[Tensor] = [ours] if isinstance(ours, Tensor) else list(ours.values())
    return max(_largest(a.float(), torch.as_tensor(b).float()) for a, b in zip(results, theirs, strict=True)), ""


def _by_onnxruntime(source: Path, given: Mapping[str, Tensor]) -> list[Any] | str:
    """The outputs of a file, or why ONNX Runtime cannot run it; given may have more than its inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class in common
        return str(error).splitlines()[0]
    inputs = {x.name: given[x.name].numpy().astype(_NUMPY[x.type]) for x in session.get_inputs()}
    try:
        outputs: list[Any] = session.run(None, inputs)
    except Exception as error:
        return str(error).splitlines()[0]
    return outputs


def _largest(ours: Tensor, expected: Tensor) -> float:
    """max |ours - expected| / max |expected|. Below 0.1 that counts as 0.1: ONNX Runtime's sigmoid is off by 1e-6."""
    if not expected.numel():
        return 0.0
    distance = (ours - expected).abs().max() / expected.abs().max().clamp_min(0.1)
    return float(distance.nan_to_num(nan=float("inf")))


_NUMPY = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
