"""Build the wheels of fggp and fggp-runtime for all systems, on one machine, and check them: `make wheels`.

Zig's Clang, which pip installs, brings the C and C++ libraries of all systems. The compiled libraries are loaded by
address, not as extensions of one version of Python, so a system needs one wheel of each package.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import ziglang

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "zig"
X86 = ("generic", "avx2", "avx512")


class Platform(NamedTuple):
    """A system that wheels are made for.

    Args:
        zig: Zig's name of it.
        builds: the processors that libraries are compiled for.
        suffix: of libraries.
        module_suffix: of those that are only opened at run time.
    """

    zig: str
    builds: tuple[str, ...]
    suffix: str
    module_suffix: str


# By the wheel's platform tag.
PLATFORMS = {
    "manylinux_2_28_x86_64": Platform("x86_64-linux-gnu.2.28", X86, ".so", ".so"),
    "manylinux_2_28_aarch64": Platform("aarch64-linux-gnu.2.28", ("generic",), ".so", ".so"),
    "macosx_11_0_x86_64": Platform("x86_64-macos.11.0", X86, ".dylib", ".so"),
    "macosx_11_0_arm64": Platform("aarch64-macos.11.0", ("generic",), ".dylib", ".so"),
    "win_amd64": Platform("x86_64-windows-gnu", X86, ".dll", ".dll"),
}
PACKAGES = {"fggp": ROOT, "fggp_runtime": ROOT / "runtime"}


def run(*command: object) -> str:
    """Run a program of this environment. Ends this one if it fails.

    Returns:
        What it printed; errors go where this program's go.
    """
    folder = Path(sys.executable).parent
    words = [str(word) for word in command]
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}\nthis failed: {' '.join(words)}")
    return done.stdout


def build(package: str, tag: str, into: Path) -> Path:
    """Build one wheel.

    Returns:
        Its file.
    """
    settings = {
        "wheel.tags": f"py3-none-{tag}",
        "build-dir": BUILD / package / tag,
        "install.strip": "false",  # the toolchain file has the linker do it: other systems' tools are missing here
        "cmake.define.CMAKE_TOOLCHAIN_FILE": ROOT / "cmake" / "zig.cmake",
        "cmake.define.ZIG": ziglang.__path__[0],
        "cmake.define.ZIG_TARGET": PLATFORMS[tag].zig,
    }
    options = [f"-C{name}={value}" for name, value in settings.items()]
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", into, *options, PACKAGES[package])
    wheels = into.glob(f"{package}-*-{settings['wheel.tags']}.whl")
    return max(wheels, key=lambda wheel: wheel.stat().st_mtime)  # beside those of other versions


def libraries(package: str, tag: str) -> set[str]:
    """The names of the compiled libraries that a wheel has to hold."""
    platform = PLATFORMS[tag]
    modules = {f"libfggp_{build}{platform.module_suffix}" for build in platform.builds}
    if package == "fggp":
        return modules
    return {f"libfggp{platform.suffix}"} | (modules if len(modules) > 1 else set())


def check_libraries(wheel: Path, package: str, tag: str) -> None:
    """Whether all libraries are there: where compiling fails, scikit-build-core makes a wheel of fggp without them."""
    with ZipFile(wheel) as file:
        found = {name.rpartition("/")[2] for name in file.namelist() if name.startswith(f"{package}/libfggp")}
    if found != libraries(package, tag):
        sys.exit(f"{wheel.name} holds the libraries {sorted(found)}, not {sorted(libraries(package, tag))}")


def check_linux(wheel: Path, tag: str) -> None:
    """Whether a wheel needs nothing newer than its tag promises, and no libraries but those that every Linux has."""
    report = json.loads(run("auditwheel", "show", "--json", wheel))
    oldest = [re.fullmatch(r"manylinux_(\d+)_(\d+)_(\w+)", text) for text in (report["overall_tag"], tag)]
    needed, promised = [one and (one[3], int(one[1]), int(one[2])) for one in oldest]
    if not needed or needed > promised or report["external_libs"]:
        sys.exit(f"{wheel.name} is not what its tag promises: {report}")


def main() -> None:
    """Build and check the wheels that the command line asks for, and the source distribution of fggp."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "platforms", nargs="*", metavar="PLATFORM", help=f"all, if none is given: {', '.join(PLATFORMS)}"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="the folder for the wheels")
    given = parser.parse_args()
    if unknown := set(given.platforms) - set(PLATFORMS):
        parser.error(f"there are no wheels for {', '.join(sorted(unknown))}")
    for tag in given.platforms or PLATFORMS:
        for package in PACKAGES:
            wheel = build(package, tag, given.out)
            check_libraries(wheel, package, tag)
            if tag.startswith("manylinux"):
                check_linux(wheel, tag)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", given.out, ROOT)
    run("twine", "check", "--strict", *given.out.iterdir())
    run("check-wheel-contents", given.out)


if __name__ == "__main__":
    main()
