"""The C++ kernels (`csrc/`): which of their builds this processor can run, found and loaded when first needed."""

from collections.abc import Iterator
from ctypes import CDLL, c_char_p
from functools import cache
from pathlib import Path
from typing import Any

import torch

import fggp

# What PyTorch calls the vector instructions it found, and which builds of the kernels can use them, best first.
BUILDS = {"AVX512": ("avx512", "avx2", "generic"), "AVX2": ("avx2", "generic")}
REINSTALL = "run: pip install --force-reinstall --no-deps fggp (with -v it says what fails)"
INTERFACE = 2  # FGGP_INTERFACE in csrc/fggp.h, which the structures in `kernel_passes` and `ship.kernels` repeat


class KernelsMissingError(RuntimeError):
    """The kernels were not built when fggp was installed, or cannot be loaded."""


def build_names() -> tuple[str, ...]:
    """The builds that this processor can run, best first."""
    return BUILDS.get(torch.backends.cpu.get_cpu_capability(), ("generic",))


def builds() -> Iterator[Path]:
    """The libraries that are installed and that this processor can run, best first."""
    for name in build_names():
        for folder in fggp.__path__:
            yield from Path(folder).glob(f"*fggp_{name}.*")


def open_library(path: Path) -> CDLL:
    """Load one build.

    Args:
        path: of the shared library.

    Raises:
        KernelsMissingError: it cannot be loaded, or is of another version.
    """
    try:
        library = CDLL(str(path))
        interface = library.fggp_interface()
    except (OSError, AttributeError) as error:
        raise KernelsMissingError(f"the kernels in {path} cannot be loaded: {error}") from error
    if interface != INTERFACE:
        raise KernelsMissingError(f"the kernels in {path} are of another version of fggp; {REINSTALL}")
    library.fggp_cpu.restype = c_char_p
    return library


@cache
def load() -> CDLL:
    """The kernels for this processor.

    Raises:
        KernelsMissingError: there are none; the message says what to do.
    """
    for path in builds():
        return open_library(path)
    raise KernelsMissingError(
        f"fggp was installed without its kernels, as there was no C++ compiler (GCC or Clang) or it failed; "
        f"install one, and then {REINSTALL}"
    )


def checked(status: Any, function: Any, arguments: Any) -> Any:
    """The ``errcheck`` of the kernels' functions.

    Raises:
        MemoryError: there was not enough.
    """
    if status:
        raise MemoryError("the kernels ran out of memory")
    return status
