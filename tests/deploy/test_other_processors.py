"""libfggp on processors that this machine does not have, in an emulator."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from c_library import ROOT, STRICT, assert_classifies, compiled, installed, linked_to, needed, run
from test_c_library import BUILDS, ONLY_X86

ARM = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
REMOTE = Path(__file__).parent / "remote"


@pytest.fixture(scope="module")
def arm():
    """The folder of the library for 64-bit ARM."""
    needed("aarch64-linux-gnu-g++", ARM[0])
    return installed("aarch64", f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / 'aarch64.cmake'}")


@ONLY_X86
@pytest.mark.parametrize(
    ("processor", "build"),
    [("Conroe", "generic"), ("SandyBridge", "generic"), ("Haswell", "avx2")],
)
def test_old_processors(prefix, networks, tmp_path, processor, build):
    """The emulator refuses instructions that the processor does not have; here the other builds do not even exist."""
    needed("qemu-x86_64")
    lib = shutil.copytree(prefix, tmp_path / "alone", symlinks=True) / "lib"
    program = compiled(tmp_path, "cc", link=linked_to(lib.parent))
    assert_classifies(networks, "qemu-x86_64", "-cpu", processor, program)
    for name in BUILDS - {f"libfggp_{build}.so"}:
        (lib / name).unlink()
    assert_classifies(networks, "qemu-x86_64", "-cpu", processor, program)


AVX2 = """
#include <immintrin.h>
int main(void) {
    volatile __m256i one = _mm256_set1_epi32(1);
    volatile __m256i two = _mm256_add_epi32(one, one);
    return ((volatile int *)&two)[0] - 2;
}
"""


@ONLY_X86
def test_the_emulator_refuses_what_a_processor_does_not_have(tmp_path):
    needed("qemu-x86_64")
    (tmp_path / "avx2.c").write_text(AVX2)
    run("cc", "-mavx2", tmp_path / "avx2.c", "-o", tmp_path / "avx2")
    run("qemu-x86_64", "-cpu", "Haswell", tmp_path / "avx2")
    assert run("qemu-x86_64", "-cpu", "SandyBridge", tmp_path / "avx2", check=False).returncode != 0


def test_the_example_on_arm(arm, networks, tmp_path):
    program = compiled(tmp_path, "aarch64-linux-gnu-gcc", link=linked_to(arm))
    assert_classifies(networks, *ARM, program)


def test_arm_uses_vectors(arm):
    libraries = list((arm / "lib").glob("*.so"))
    assert [file.name for file in libraries] == ["libfggp.so"]
    assert re.search(r"fmla\s+v\d+\.4s", run("aarch64-linux-gnu-objdump", "-d", libraries[0]).stdout)


OPERATORS = "c_interface convolutions elementwise gemm movement norms pooling products "
OPERATORS += "quantized_operations recurrent reductions resize"


def test_all_operators_on_arm(arm, tmp_path):
    """The tests of operators, with a library that does its work in another process, in the emulator."""
    server, client = tmp_path / "server", tmp_path / "libclient.so"
    link = linked_to(arm)
    run("aarch64-linux-gnu-g++", "-std=c++17", "-O1", *STRICT, REMOTE / "server.cpp", "-o", server, *link)
    run("g++", "-std=c++17", "-O1", *STRICT, "-shared", "-fPIC", link[0], REMOTE / "client.cpp", "-o", client)
    done = run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *(ROOT / "tests" / "network" / f"test_{name}.py" for name in OPERATORS.split()),
        check=False,
        FGGP_TEST_LIBRARY=str(client),
        FGGP_REMOTE=f"exec {' '.join(ARM)} {server}",
        HYPOTHESIS_EXAMPLES="10",
    )
    assert done.returncode == 0, done.stdout
