"""A Python for Windows that runs in Wine, made of packages from PyPI: `make windows-python`.

Python's own installers are not on PyPI. Panda3D's wheels hold what they install, for games shipped with it. The part
of the standard library that is written in Python is this interpreter's, of the same minor version.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "windows-python"
VERSION = sys.version_info[:2]
# The interpreter is a DLL; this is the program that python.exe is.
MAIN = """
#include <wchar.h>
__declspec(dllimport) int Py_Main(int, wchar_t **);
int wmain(int count, wchar_t **words) { return Py_Main(count, words); }
"""


def run(*command: object) -> None:
    """Run a program; this one ends if it fails."""
    subprocess.run([str(word) for word in command], check=True)


def main() -> None:
    """Make the folder anew."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    left_out = shutil.ignore_patterns("__pycache__", "site-packages", "lib-dynload", "test", "config-*")
    shutil.copytree(sysconfig.get_path("stdlib"), FOLDER / "Lib", ignore=left_out)
    packages = FOLDER / "Lib" / "site-packages"
    platform = ("--python-platform", "windows", "--python-version", ".".join(map(str, VERSION)))
    options = ("--quiet", "--require-hashes", "--only-binary", ":all:", "--target", packages, *platform)
    run(sys.executable, "-m", "uv", "pip", "install", *options, "-r", ROOT / "requirements" / "windows.txt")

    (FOLDER / "DLLs").mkdir()
    for file in (packages / "deploy_libs").iterdir():
        if not file.name.startswith("api-ms-"):  # parts of Windows, which Wine has
            shutil.move(file, FOLDER / "DLLs" if file.suffix == ".pyd" else FOLDER)
    for rest in packages.glob("panda3d*"):
        shutil.rmtree(rest)

    source = FOLDER / "main.c"
    source.write_text(MAIN)
    library = FOLDER / "python{}{}.dll".format(*VERSION)
    zig = (sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-windows-gnu", "-municode")
    run(*zig, "-s", source, library, "-o", FOLDER / "python.exe")


if __name__ == "__main__":
    main()
