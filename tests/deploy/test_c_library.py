"""libfggp and its C example, built and run as their users would. `make deploy` runs these tests."""

import re
import shutil
import subprocess

import pytest

import fggp
from c_library import EXAMPLE, ROOT, assert_classifies, chosen_build, compiled, installed, linked_to, needed, run
from fggp import native

BUILDS = {"libfggp_generic.so", "libfggp_avx2.so", "libfggp_avx512.so"}
ONLY_X86 = pytest.mark.skipif(
    subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip() != "x86_64",
    reason="only for x86-64 there are several builds",
)


@pytest.fixture(scope="module")
def program(prefix, tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("program"), "cc", link=linked_to(prefix))


@pytest.fixture(scope="module")
def checked_program(tmp_path_factory):
    """The example and a static library, both with checked memory accesses and arithmetic."""
    prefix = installed("checked", "-DFGGP_SANITIZE=ON", "-DFGGP_BUILD=generic", "-DBUILD_SHARED_LIBS=OFF")
    folder = tmp_path_factory.mktemp("checked")
    return compiled(folder, "gcc", "-g", "-fsanitize=address,undefined", link=linked_to(prefix))


def test_the_example_is_short():
    assert len((EXAMPLE / "classify.c").read_text().splitlines()) <= 40


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_example(prefix, networks, tmp_path, compiler):
    assert_classifies(networks, compiled(tmp_path, compiler, link=linked_to(prefix)))


def test_pkg_config_where_the_library_was_moved(prefix, networks, tmp_path):
    needed("pkg-config")
    lib = shutil.copytree(prefix, tmp_path / "elsewhere", symlinks=True) / "lib"
    options = run("pkg-config", "--cflags", "--libs", "fggp", PKG_CONFIG_PATH=str(lib / "pkgconfig")).stdout.split()
    assert str(prefix) not in options
    program = compiled(tmp_path, "cc", link=options)
    moved = run("env", f"LD_LIBRARY_PATH={lib}", program, networks / "image.fggp", networks / "image.ppm")
    assert moved.stdout.startswith("class ")


def test_the_cmake_package(prefix, networks, tmp_path):
    run("cmake", "-S", EXAMPLE, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path)
    assert_classifies(networks, tmp_path / "classify")


def test_the_version(prefix):
    assert (prefix / "lib" / "libfggp.so").resolve().name.endswith(fggp.__version__)
    assert f"Version: {fggp.__version__}\n" in (prefix / "lib" / "pkgconfig" / "fggp.pc").read_text()


@ONLY_X86
def test_dependencies(prefix):
    libraries = {file.name: file for file in (prefix / "lib").glob("*.so")}
    assert set(libraries) == BUILDS | {"libfggp.so"}
    for file in libraries.values():
        found = set(re.findall(r"NEEDED.*\[(.+?)\.so", run("readelf", "-d", file).stdout))
        assert found <= {"libstdc++", "libm", "libgcc_s", "libc", "libpthread", "libdl", "ld-linux-x86-64"}


TOO_LARGE = pytest.mark.xfail(strict=True, reason="the operators have made the library larger than it shall be")


@TOO_LARGE
def test_no_build_is_larger_than_500_kb(prefix):
    sizes = {file.name: file.resolve().stat().st_size for file in (prefix / "lib").glob("*.so")}
    assert max(sizes.values()) <= 500_000, sizes


@TOO_LARGE
def test_the_wheel_of_fggp_runtime_is_not_larger_than_1_mb():
    """`make deploy` builds it before these tests."""
    (wheel,) = (ROOT / "build" / "wheels").glob("*.whl")
    assert wheel.stat().st_size <= 1_000_000


@ONLY_X86
def test_inline_functions_stay_in_their_build(prefix):
    """Otherwise an old processor could get one that was compiled for AVX-512."""
    for name in BUILDS:
        printed = run("nm", "-D", "--defined-only", prefix / "lib" / name).stdout
        exported = [line.split()[-1] for line in printed.splitlines()]
        assert "fggp_run" in exported
        assert [function for function in exported if not function.startswith("fggp_")] == []


@ONLY_X86
def test_the_best_build_is_chosen(prefix):
    assert chosen_build(prefix / "lib" / "libfggp.so") == native.build_names()[0]


@ONLY_X86
def test_a_missing_build_is_named(prefix, networks, tmp_path):
    lib = shutil.copytree(prefix, tmp_path / "alone", symlinks=True) / "lib"
    program = compiled(tmp_path, "cc", link=linked_to(lib.parent))
    for name in BUILDS:
        (lib / name).unlink()
    done = run(program, networks / "image.fggp", networks / "image.ppm", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"classify: .*libfggp_\w+\.so: cannot open shared object file: .*\n", done.stderr)


@ONLY_X86
def test_a_build_of_another_version_is_refused(prefix, networks, tmp_path):
    lib = shutil.copytree(prefix, tmp_path / "alone", symlinks=True) / "lib"
    program = compiled(tmp_path, "cc", link=linked_to(lib.parent))
    (tmp_path / "other.c").write_text("int fggp_interface(void) { return 1; }")
    for name in BUILDS:
        run("cc", "-shared", "-fPIC", tmp_path / "other.c", "-o", lib / name)
    done = run(program, networks / "image.fggp", networks / "image.ppm", check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"classify: .*libfggp_\w+\.so belongs to another version of libfggp\n", done.stderr)


def test_what_the_example_refuses(program, networks, tmp_path):
    image, network = networks / "image.ppm", networks / "image.fggp"
    short = tmp_path / "short.ppm"
    short.write_bytes(image.read_bytes()[:-1])
    for arguments in ((), (network,), (network, tmp_path / "none.ppm"), (network, short), (network, network)):
        assert "usage: classify" in run(program, *arguments, check=False).stderr
    done = run(program, networks / "text.fggp", image, check=False)
    assert (done.returncode, done.stderr) == (2, 'classify: the network has no input "x"\n')
    done = run(program, tmp_path / "none.fggp", image, check=False)
    assert re.fullmatch(r"classify: .*none\.fggp: .*\n", done.stderr)


def test_the_checks_are_on(checked_program):
    assert "__asan_init" in run("nm", checked_program).stdout


def test_damaged_files_with_checked_memory_accesses(checked_program, networks, tmp_path):
    assert_classifies(networks, checked_program)
    data = (networks / "image.fggp").read_bytes()
    for i in range(60):
        place = i * len(data) // 60
        damaged = bytearray(data if i % 2 else data[:place])
        if i % 2:
            damaged[place] ^= 1 << i % 8
        (tmp_path / "damaged.fggp").write_bytes(damaged)
        done = run(checked_program, tmp_path / "damaged.fggp", networks / "image.ppm", check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"classify: .*damaged\.fggp: .*\n", done.stderr)
