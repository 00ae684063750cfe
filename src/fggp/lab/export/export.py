"""`fggp export`: the small file, network file, ONNX file or page of a finished run, or of any state dict."""

import ctypes
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from rich.console import Console
from torch import nn

import fggp
from fggp import native
from fggp.atomic import atomic_write
from fggp.lab.base import Json
from fggp.lab.base.errors import UsageError
from fggp.lab.export import page
from fggp.lab.export.from_onnx import export_from_onnx
from fggp.lab.export.onnx_file import TOLERANCE, check_packages, onnx_difference, write_onnx
from fggp.lab.export.settings import ExportSettings, Format
from fggp.lab.export.trained import Network, load_network, weights_left
from fggp.lab.training.run_folder import RunFolder
from fggp.native import KernelsMissingError
from fggp.ship.graph.capture import CaptureError
from fggp.ship.graph.inplace import MutationError
from fggp.ship.network.describe import describe_model
from fggp.ship.network.description import Description, UnsupportedError
from fggp.ship.network.write import write

LARGEST_BATCH = 7
"""The ONNX file is checked on batches of 1, 2 and this."""


def export(settings: ExportSettings, console: Console) -> Json:
    """Write the files, check them, and show their sizes.

    Returns:
        ``bytes`` of the dense file and of each written file; ``weights``, the number of prunable weights, and
        ``weights_left``, that of non-zero ones; ``onnx_difference``, relative, if ONNX was written.

    Raises:
        UsageError: source, options or packages are wrong, or a written file does not give the network's outputs.
    """
    files = settings.files()
    if settings.values != "fp32" and set(files) == {"onnx"}:
        raise UsageError(f"values is {settings.values!r}; it must be left out without a small file: ONNX keeps fp32")
    for file in files.values():
        if file.resolve() in (settings.source.resolve(), RunFolder(settings.source).model_file.resolve()):
            raise UsageError(f"out is {str(file)!r}, which holds the weights to export; choose another file")
    existing = [str(file) for file in files.values() if file.exists()]
    if existing and not settings.force:
        raise UsageError(f"{', '.join(existing)} exists already; add --force to replace it, or choose another --out")
    if settings.source_is_onnx:
        return _from_onnx(settings, files, console)
    if settings.fix:
        raise UsageError("fix is for ONNX files; leave it out")
    if "onnx" in files:
        check_packages()
    network = load_network(settings.source, settings.model, settings.image_size)
    if not set(files) <= {"small"} and network.image_size is None:
        raise UsageError(f"{settings.source} does not tell the size of its images; add --image-size PIXELS")
    kept, prunable = weights_left(network.model)
    result: Json = {"weights": prunable, "weights_left": kept, "bytes": {"dense": dense_bytes(network.model)}}
    sparsity = 1 - kept / max(prunable, 1)
    console.print(
        f"[bold]{network.title}[/]: {kept:,} of {prunable:,} prunable weights kept, {100 * sparsity:.2f} % sparse",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"  {'dense':12}{result['bytes']['dense']:13,} bytes", highlight=False)
    for kind, file in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        with console.status(f"writing {file}"):
            if kind == "small":
                _write_small(network, file, settings.values)
                name = f"small, {settings.values}"
                checked = "loads back to the bit" if settings.values == "fp32" else ""
            elif kind == "network":
                name, checked = "network", _write_network(network, file, settings.values)
            elif kind == "page":
                write_page(network, file, settings.values)
                name, checked = "page", "open it in a browser"
            else:
                result["onnx_difference"] = _write_onnx(network, file)
                name = "ONNX"
                checked = (
                    f"ONNX Runtime is off by {result['onnx_difference']:.0e} in batches of 1, 2 and {LARGEST_BATCH}"
                )
        size = result["bytes"][kind] = file.stat().st_size
        # A page holds the library too.
        factor = "" if kind == "page" else f"{result['bytes']['dense'] / size:6.1f}× smaller"
        console.print(
            f"  {name:12}{size:13,} bytes {factor:15}  {file}  {checked}".rstrip(),
            highlight=False,
            soft_wrap=True,
        )
    _print_input(network, console)
    if "onnx" in files:
        console.print(
            "ONNX stays dense: its runtimes compute with the zeros, too. A network file (.fggp) leaves them out.",
            highlight=False,
            soft_wrap=True,
        )
    if "small" in files:
        _print_usage(files["small"], console)
    return result


def _from_onnx(settings: ExportSettings, files: dict[Format, Path], console: Console) -> Json:
    """Write the network file of an ONNX file."""
    if set(files) != {"network"}:
        raise UsageError(f"format is {' '.join(files)}; from an ONNX file there is the network file only (.fggp)")
    for option in ("model", "image_size"):
        if getattr(settings, option) is not None:
            raise UsageError(f"{option} is for state dicts and runs; an ONNX file tells it itself")
    if not settings.source.exists():
        raise UsageError(f"{settings.source} does not exist")
    (file,) = files.values()
    file.parent.mkdir(parents=True, exist_ok=True)
    values = torch.bfloat16 if settings.values == "bf16" else None
    return export_from_onnx(settings.source, file, console, values=values, fixed=settings.fixed())


def dense_bytes(model: nn.Module) -> int:
    """Return the size of a model's state dict as a safetensors file, zeros included."""
    # Clones, because safetensors refuses tensors that share memory, as tied weights do.
    state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in model.state_dict().items()}
    return len(safetensors.torch.save(state))


def small_bytes(model: nn.Module, values: torch.dtype | None = None, metadata: Mapping[str, str] | None = None) -> int:
    """Return the size of a model's small file; ``values`` and ``metadata`` as in `fggp.save`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "small.safetensors"
        fggp.save(model, file, values=values, metadata=metadata)
        return file.stat().st_size


def _write_small(network: Network, file: Path, values: str) -> None:
    try:
        rounded = torch.bfloat16 if values == "bf16" else None
        fggp.save(network.model, file, values=rounded, metadata=metadata_of(network))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UsageError(f"a small file cannot hold this network: {error}") from error
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    fggp.load(file, network.model)
    after = network.model.state_dict()
    if values == "fp32":
        changed = [name for name, tensor in before.items() if not _same_bits(tensor, after[name])]
        if changed:
            raise RuntimeError(f"{file} does not give back {', '.join(changed)}: a defect of fggp")
    network.model.load_state_dict(before)  # ONNX gets the exact values, even if the small file rounds them


def _write_network(network: Network, file: Path, values: str) -> str:
    """Write a network file, and return how it was checked."""
    _write_described(network, described(network.model, network.images(2)), file, values)
    try:
        library = native.load()
    except KernelsMissingError:
        return ""
    handle = ctypes.c_void_p()
    library.fggp_error.restype, library.fggp_error.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    library.fggp_free.argtypes = [ctypes.c_void_p]
    status = library.fggp_load(os.fsencode(file), ctypes.byref(handle))
    message = library.fggp_error(handle).decode() if status and handle else ""
    library.fggp_free(handle)
    if status:
        raise RuntimeError(f"the library does not read {file}: {message or 'out of memory'}: a defect of fggp")
    return "the library reads it"


def described(model: nn.Module, images: torch.Tensor) -> Description:
    """Describe a network for its network file.

    Args:
        model: on the CPU, in evaluation mode.
        images: an example of its input, [2, channels, height, width].

    Raises:
        UsageError: the file cannot hold it.
    """
    try:
        return describe_model(model, (images,), {})
    except (UnsupportedError, CaptureError, MutationError) as error:
        raise UsageError(f"a network file cannot hold this network: {error}") from error


def _write_described(network: Network, description: Description, file: Path, values: str) -> None:
    rounded = torch.bfloat16 if values == "bf16" else None
    write(file, description.network, description.tensors, metadata_of(network), values=rounded)


def write_page(network: Network, file: Path, values: str = "fp32") -> None:
    """Write a page that runs the network in a browser.

    Args:
        network: of a run, which says how images are prepared.
        file: the page.
        values: as in `ExportSettings`.

    Raises:
        UsageError: the network or the installation lacks something; the message says what.
    """
    description = described(network.model, network.images(2))
    with tempfile.TemporaryDirectory() as folder:
        network_file = Path(folder) / "net.fggp"
        _write_described(network, description, network_file, values)
        data = network_file.read_bytes()
    kept, prunable = weights_left(network.model)
    text = page.render(
        network.title,
        data,
        description,
        network.input,
        dense_bytes=dense_bytes(network.model),
        weights=prunable,
        weights_left=kept,
    )
    with atomic_write(file) as opened:
        opened.write(text.encode())


def metadata_of(network: Network) -> dict[str, str]:
    """Return the files' metadata: how images are normalised, and the names of the classes."""
    return {"input": json.dumps(network.input)} if network.input else {}


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


def _write_onnx(network: Network, file: Path) -> float:
    inputs = {"images": network.images(LARGEST_BATCH)}
    write_onnx(network.model, inputs, file, metadata_of(network))
    difference = onnx_difference(file, network.model, inputs)
    if difference > TOLERANCE:
        file.unlink()
        raise UsageError(
            f"ONNX Runtime's output differs from PyTorch's by {difference:.1e} of its size, more than {TOLERANCE:.0e}; "
            f"{file} is not kept"
        )
    return difference


def _print_input(network: Network, console: Console) -> None:
    image = network.input
    if image:
        means, stds = (", ".join(f"{value:.4g}" for value in image[key]) for key in ("mean", "std"))
        console.print(
            f"input:        [N, {', '.join(map(str, image['shape']))}], (pixel 0…255 − {means}) / {stds} by channel, "
            f"for {len(image['classes'])} classes; exact, and by name, in the file's metadata, 'input'",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _print_usage(file: Path, console: Console) -> None:
    console.print(f"read it back: fggp.load({str(file)!r}, model)", highlight=False, soft_wrap=True)
    console.print("run it fast:  fggp.compile(model, example_input)", highlight=False)
    try:
        native.load()
    except KernelsMissingError as error:
        console.print(f"on this machine that would run on PyTorch: {error}", highlight=False, soft_wrap=True)
