"""The options of `fggp export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fggp.lab.base.errors import UsageError
from fggp.lab.base.options import default_shown_as

Format = Literal["small", "network", "onnx", "page"]
SUFFIXES: dict[Format, str] = {"small": ".safetensors", "network": ".fggp", "onnx": ".onnx", "page": ".html"}


@dataclass(frozen=True)
class ExportSettings:
    """Write a pruned network as a small file, a network file, ONNX or a page; or an ONNX file as a network file.

    $ fggp export fggp-runs/RUN                       the small file: the non-zero weights and their positions
    $ fggp export fggp-runs/RUN --out net.fggp        the network file, which runs without Python and PyTorch
    $ fggp export fggp-runs/RUN --out net.onnx        ONNX, for other runtimes, zeros included
    $ fggp export fggp-runs/RUN --page                a page in which the network classifies pictures, in any browser
    $ fggp export fggp-runs/RUN --format small onnx   both
    $ fggp export net.pt --model resnet50             from any state dict, of torch.save or safetensors
    $ fggp export net.onnx --out net.fggp             from ONNX, of any exporter, to the network file

    In Python, fggp.load(FILE, model) reads a small file, and fggp.compile(model, example) runs the model fast. The
    files hold the network alone, which takes images normalised as in training. For a run, the command prints this
    normalisation and keeps it in the files' metadata. Each file is read back and checked.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_FOLDER|FILE")]
    """Folder of a finished run of fggp train, a file with a state dict, or an ONNX file."""
    out: Annotated[Path | None, default_shown_as("the source's folder", "PATH")] = None
    """A file, ending in .safetensors (the small file), .fggp (the network file), .onnx or .html (the page), or else a
    folder."""
    format: Annotated[
        tuple[Format, ...] | None, default_shown_as("by the ending of --out, else small", "{small,network,onnx,page} …")
    ] = None
    """Files to write."""
    page: bool = False
    """The same as --format page."""
    values: Literal["fp32", "bf16"] = "fp32"
    """Values in the small file and the network file: fp32 keeps every bit, bf16 rounds those of sparse layers to
    bfloat16."""
    model: Annotated[str | None, default_shown_as("the run's", "NAME")] = None
    """For a state dict: the name of its network, as in fggp train."""
    image_size: Annotated[tuple[int, ...] | None, default_shown_as("that of the run's data", "PIXELS")] = None
    """For a network file and ONNX: height and width of the images, or one number for both."""
    fix: Annotated[tuple[str, ...], default_shown_as("none", "NAME=NUMBER …")] = ()
    """For an ONNX file: inputs that become constants, such as sr=16000, and numbers for free sizes."""
    force: bool = False
    """Replace existing files."""

    @property
    def source_is_onnx(self) -> bool:
        """Whether the source is an ONNX file."""
        return self.source.suffix == ".onnx"

    def fixed(self) -> dict[str, int | float]:
        """Return the numbers of ``fix`` by name.

        Raises:
            UsageError: one is no number.
        """
        found: dict[str, int | float] = {}
        for text in self.fix:
            name, _, number = text.rpartition("=")
            try:
                found[name] = int(number) if number.lstrip("-").isdecimal() else float(number)
            except ValueError:
                name = ""
            if not name:
                raise UsageError(f"fix is {text!r}; it must be a name and a number, such as sr=16000")
        return found

    def files(self) -> dict[Format, Path]:
        """Return the files to write, by format.

        Raises:
            UsageError: the options contradict each other.
        """
        named = None if self.out is None else {end: each for each, end in SUFFIXES.items()}.get(self.out.suffix)
        asked = (*(self.format or ()), *(("page",) if self.page and "page" not in (self.format or ()) else ()))
        formats: tuple[Format, ...] = asked or (named or ("network" if self.source_is_onnx else "small"),)
        if self.out is not None and named is not None:
            if formats != (named,):
                raise UsageError(
                    f"out is {str(self.out)!r}, which is not for format {' '.join(formats)}; it must end in "
                    f"{' or '.join(SUFFIXES.values())} as the format does, or be a folder"
                )
            return {named: self.out}
        folder = self.out or (self.source if self.source.is_dir() else self.source.parent)
        stem = "model" if self.source.is_dir() else self.source.stem
        names: dict[Format, str] = {
            "small": f"{stem}.small.safetensors",
            "network": f"{stem}.fggp",
            "onnx": f"{stem}.onnx",
            "page": f"{stem}.html",
        }
        return {each: folder / names[each] for each in formats}
