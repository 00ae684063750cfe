"""The C library as its users get it: built, installed and linked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from ctypes import CDLL, c_char_p
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
BUILDS = ROOT / "build" / "deploy"
EXAMPLE = ROOT / "examples" / "c"
STRICT = ("-Wall", "-Wextra", "-Werror")


def needed(*programs: str) -> None:
    """Skip a test where programs are missing, as on a CI machine without them."""
    if missing := [program for program in programs if not shutil.which(program)]:
        pytest.skip(f"not installed: {', '.join(missing)}")


def run(*command: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program; what it printed is shown if it fails."""
    words = [str(word) for word in command]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # this environment's CMake
    variables = {**os.environ, "PATH": path, **environment}
    done = subprocess.run(
        words, env=variables, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False
    )
    assert not check or done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    return done


def installed(name: str, *options: str) -> Path:
    """Build the library and install it. When this is repeated, only what has changed is compiled.

    Args:
        name: of the folder below build/deploy.
        options: for CMake.

    Returns:
        The folder that it is installed in.
    """
    build, prefix = BUILDS / name, BUILDS / name / "installed"
    run("cmake", "-S", ROOT, "-B", build, f"-DCMAKE_INSTALL_PREFIX={prefix}", "-DCMAKE_INSTALL_LIBDIR=lib", *options)
    run("cmake", "--build", build, "--parallel", os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", os.cpu_count()))
    shutil.rmtree(prefix, ignore_errors=True)
    run("cmake", "--install", build, "--strip")
    return prefix


def linked_to(prefix: Path) -> list[str]:
    """A compiler's options for an installed library."""
    static = ["-lstdc++", "-lm", "-pthread"] if (prefix / "lib" / "libfggp.a").exists() else []
    return [f"-I{prefix / 'include'}", f"-L{prefix / 'lib'}", f"-Wl,-rpath,{prefix / 'lib'}", "-lfggp", *static]


def compiled(folder: Path, *compiler: str, link: list[str]) -> Path:
    """The example, compiled with all warnings as errors.

    Args:
        folder: for the program.
        compiler: the compiler and its options.
        link: its options for the library.
    """
    needed(compiler[0])
    program = folder / "classify"
    warnings = ("-std=c99", "-pedantic", "-Wconversion", *STRICT)
    run(*compiler, *warnings, EXAMPLE / "classify.c", "-o", program, *link)
    return program


def assert_classifies(networks: Path, *command: object) -> None:
    """The example prints the class and the score that PyTorch found."""
    scores = np.load(networks / "image.npz")["scores"][0]
    printed = run(*command, networks / "image.fggp", networks / "image.ppm").stdout
    matched = re.fullmatch(r"class (\d+), score (\S+)\n", printed)
    assert matched, printed
    assert int(matched[1]) == scores.argmax()
    assert float(matched[2]) == pytest.approx(scores.max(), rel=1e-5)


def chosen_build(library: Path) -> str:
    """The processor for which an installed library opens a build here."""
    function = CDLL(str(library)).fggp_cpu
    function.restype = c_char_p
    return function().decode()
