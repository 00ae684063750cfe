"""The C++ kernels (`csrc/`): finds and loads, when first needed, the best build that this processor can run."""

from collections.abc import Iterator, Sequence
from ctypes import CDLL, c_char_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

# PyTorch's name of the vector instructions it found -> the builds of the kernels that can use them, best first.
BUILDS = {"AVX512": ("avx512", "avx2", "generic"), "AVX2": ("avx2", "generic")}
REINSTALL = "run: pip install --force-reinstall --no-deps fggp (with -v it says what fails)"
INTERFACE = 8  # FGGP_INTERFACE in csrc/fggp.h, whose structures `native_passes` and `ship.runtime.library` repeat


class KernelsMissingError(RuntimeError):
    """The kernels were not built when fggp was installed, or cannot be loaded."""


def build_names() -> tuple[str, ...]:
    """The builds that this processor can run, best first."""
    return BUILDS.get(torch.backends.cpu.get_cpu_capability(), ("generic",))


def package_folders() -> Sequence[str]:
    """The folders of the package fggp; in an editable install the compiled libraries are not beside the sources."""
    spec = find_spec("fggp")
    assert spec is not None
    return spec.submodule_search_locations or ()


def installed_builds(folders: Sequence[str]) -> Iterator[Path]:
    """The libraries in some folders that this processor can run, best first."""
    for name in build_names():
        for folder in folders:
            yield from Path(folder).glob(f"*fggp_{name}.*")


def open_library(path: Path) -> CDLL:
    """Load one build.

    Args:
        path: the shared library.

    Raises:
        KernelsMissingError: it cannot be loaded, or belongs to another version of fggp.
    """
    try:
        library = CDLL(str(path))
        interface = library.fggp_interface()
    except (OSError, AttributeError) as error:
        raise KernelsMissingError(f"the kernels in {path} cannot be loaded: {error}") from error
    if interface != INTERFACE:
        raise KernelsMissingError(f"the kernels in {path} belong to another version of fggp; {REINSTALL}")
    library.fggp_cpu.restype = c_char_p
    return library


@cache
def load() -> CDLL:
    """The kernels for this processor.

    Raises:
        KernelsMissingError: none are installed; the message says what to do.
    """
    for path in installed_builds(package_folders()):
        return open_library(path)
    raise KernelsMissingError(
        f"fggp was installed without its kernels: there was no C++ compiler (GCC or Clang), or it failed; "
        f"install one, then {REINSTALL}"
    )


def raise_if_failed(status: Any, function: Any, arguments: Any) -> Any:
    """The ``errcheck`` of the kernels' functions, whose status is 0 on success.

    Raises:
        MemoryError: the status is not 0.
    """
    if status:
        raise MemoryError("the kernels ran out of memory")
    return status
