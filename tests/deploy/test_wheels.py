"""The wheels in dist/, which `make wheels` builds, as far as this machine and its emulators can run them.

.github/workflows/release.yml runs them on the systems themselves.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL as NONE
from zipfile import ZipFile

import pytest

from c_library import EXAMPLE, ROOT, STRICT, assert_classifies, chosen_build, needed, run
from fggp import native
from test_c_library import ONLY_X86
from test_other_processors import ARM, OPERATORS, REMOTE

DIST = ROOT / "dist"
ZIG = ROOT / ".venv-wheels" / "bin" / "python"
WINDOWS_PYTHON = ROOT / "build" / "windows-python" / "python.exe"


@dataclass(frozen=True)
class Platform:
    """A platform whose programs run here.

    Args:
        tag: of the wheels.
        zig: Zig's name of it.
        program: the ending of programs.
        emulator: the command that runs programs.
    """

    tag: str
    zig: str
    program: str = ""
    emulator: tuple[str, ...] = ()

    def compiled(self, folder: Path, *arguments: object) -> tuple[str, ...]:
        """Compile a program that uses fggp-runtime's library, which is copied into its folder.

        Returns:
            The command that runs it.
        """
        for name in self.emulator[:1]:
            needed(name)
        if not ZIG.exists():
            pytest.skip("`make wheels` installs the compiler")
        package = unpacked("fggp_runtime", self.tag, folder) / "fggp_runtime"
        (library,) = package.glob("libfggp.*")
        program = folder / f"program{self.program}"
        own_folder = () if self.program else (f"-Wl,-rpath,{package}",)
        options = ("-target", self.zig, "-mcpu=baseline", "-O1", f"-I{ROOT / 'csrc'}", *STRICT)
        run(ZIG, "-m", "ziglang", *arguments, *options, library, *own_folder, "-o", program)
        if self.program:  # Windows looks for libraries beside the program
            for file in package.glob("libfggp*"):
                shutil.copy(file, folder)
        return (*self.emulator, str(program))


PLATFORMS = [
    Platform("manylinux_2_28_x86_64", "x86_64-linux-gnu.2.28"),
    Platform("manylinux_2_28_aarch64", "aarch64-linux-gnu.2.28", emulator=ARM),
    Platform("win_amd64", "x86_64-windows-gnu", ".exe", ("wine",)),
]
each_platform = pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.tag)


def unpacked(package: str, tag: str, into: Path) -> Path:
    wheels = list(DIST.glob(f"{package}-*-py3-none-{tag}.whl"))
    if not wheels:
        pytest.skip("`make wheels` has not been run")
    (wheel,) = wheels
    with ZipFile(wheel) as file:
        file.extractall(into)
    return into


@pytest.fixture(autouse=True, scope="module")
def wine(tmp_path_factory):
    """Wine's idea of a Windows machine, in a folder of its own, without its pages of notes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINEPREFIX", str(tmp_path_factory.mktemp("wine")))
        patch.setenv("WINEDEBUG", "-all")
        patch.setenv("WINEDLLOVERRIDES", "mscoree=;mshtml=")  # it would ask whether to download .NET and a browser
        if shutil.which("wineboot"):
            # Its services go on in the background. They must not keep the output of a test's program open.
            subprocess.run(["wineboot", "--init"], check=True, stdin=NONE, stdout=NONE, stderr=NONE)
        yield
        if shutil.which("wineboot"):
            subprocess.run(["wineboot", "--kill"], check=False, stdin=NONE, stdout=NONE, stderr=NONE)


@each_platform
def test_the_example(platform, networks, tmp_path):
    assert_classifies(networks, *platform.compiled(tmp_path, "cc", "-std=c99", EXAMPLE / "classify.c"))


@ONLY_X86
def test_the_best_build_is_chosen(tmp_path):
    package = unpacked("fggp_runtime", "manylinux_2_28_x86_64", tmp_path)
    assert chosen_build(package / "fggp_runtime" / "libfggp.so") == native.build_names()[0]


@each_platform
def test_paths_in_other_alphabets(platform, networks, tmp_path):
    shutil.copy(networks / "image.fggp", tmp_path / "сеть ñ.fggp")
    (tmp_path / "load.c").write_text(LOAD)
    command = platform.compiled(tmp_path, "cc", tmp_path / "load.c")
    done = run("env", "-C", tmp_path, *command)
    assert done.stdout.split() == ["0", "2"]


LOAD = """
#include <fggp.h>
#include <stdio.h>
int main(void) {
    fggp_network *net;
    printf("%d ", fggp_load("сеть ñ.fggp", &net));
    fggp_free(net);
    printf("%d\\n", fggp_load("no such file.fggp", &net));
    fggp_free(net);
    return 0;
}
"""


@each_platform
def test_all_operators(platform, tmp_path):
    """The tests of operators, with a library that does its work in another process, in the emulator."""
    server = platform.compiled(tmp_path, "c++", "-std=c++17", REMOTE / "server.cpp")
    client = tmp_path / "libclient.so"
    shared = ("-std=c++17", "-O1", *STRICT, "-shared", "-fPIC", f"-I{ROOT / 'csrc'}")
    run("g++", *shared, REMOTE / "client.cpp", "-o", client)
    done = run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *(ROOT / "tests" / "network" / f"test_{name}.py" for name in OPERATORS.split()),
        check=False,
        FGGP_TEST_LIBRARY=str(client),
        FGGP_REMOTE=f"exec {' '.join(server)}",
        HYPOTHESIS_EXAMPLES="10",
    )
    assert done.returncode == 0, done.stdout


def test_fggp_runtime_in_python_for_windows(networks, tmp_path):
    """Its own tests. Wine gives a program the drive of this machine's files, so paths need no letter."""
    needed("wine")
    if not WINDOWS_PYTHON.exists():
        pytest.skip("`make windows-python` makes it")
    package = unpacked("fggp_runtime", "win_amd64", tmp_path)
    done = run(
        *("wine", WINDOWS_PYTHON, "-m", "pytest", "-q", "--basetemp", tmp_path / "files", ROOT / "runtime"),
        check=False,
        PYTHONPATH=str(package),
        FGGP_NETWORKS=str(networks),
    )
    assert done.returncode == 0, done.stdout
