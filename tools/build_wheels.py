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
import tempfile
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import lief
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
# Functions of fggp.h. On macOS also `new` and `delete`, which all C++ code of a program shares, and marks of the file.
SHOWN = re.compile(r"fggp_\w+|_Z[nd][wal]\w+|_mh_dylib_header|__dso_handle")
PACKAGES = {"fggp": ROOT, "fggp_runtime": ROOT / "runtime"}
# What every Windows and every Mac has. The C++ library is in our own libraries.
SYSTEM_LIBRARIES = re.compile(r"(?i)kernel32\.dll|ntdll\.dll|api-ms-win-crt-.*\.dll|/usr/lib/libSystem\.B\.dylib")


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


def check_system(wheel: Path, tag: str) -> None:
    """Whether libraries for Windows or macOS need only what the system has, and show nothing but their interface."""
    with tempfile.TemporaryDirectory() as folder, ZipFile(wheel) as file:
        for name in file.namelist():
            if re.search(r"/libfggp\w*\.(dll|dylib|so)$", name):
                check_library(Path(file.extract(name, folder)), tag)


def check_library(file: Path, tag: str) -> None:
    """The same for one library."""
    if tag.startswith("win"):
        windows = lief.PE.parse(str(file))
        needs = {one.name for one in windows.imports}
        shows = {one.name for one in windows.get_export().entries}
    else:
        macos = lief.MachO.parse(str(file)).at(0)
        needs = {one.name for one in macos.libraries if one.command != lief.MachO.LoadCommand.TYPE.ID_DYLIB}
        shows = {one.symbol.name.removeprefix("_") for one in macos.dyld_info.exports}
        oldest = "_".join(map(str, macos.build_version.minos[:2]))
        if not tag.startswith(f"macosx_{oldest}_"):
            sys.exit(f"{file.name} is for macOS {oldest}, not for {tag}")
        if tag.endswith("arm64") and not macos.has_code_signature:
            sys.exit(f"{file.name} is not signed, and Macs with ARM processors would not load it")
    if foreign := {name for name in needs if not SYSTEM_LIBRARIES.fullmatch(name)}:
        sys.exit(f"{file.name} for {tag} needs {sorted(foreign)}, which not every such system has")
    if "fggp_load" not in shows or not all(map(SHOWN.fullmatch, shows)):
        sys.exit(f"{file.name} for {tag} must show the functions of fggp.h and nothing else, not {sorted(shows)}")


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
            else:
                check_system(wheel, tag)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", given.out, ROOT)
    run("twine", "check", "--strict", *given.out.iterdir())
    run("check-wheel-contents", given.out)


if __name__ == "__main__":
    main()
