"""What users do with a network, where there is no PyTorch.

FGGP_NETWORKS names the folder of networks that tests/deploy/network_files.py wrote, with what PyTorch computed.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fggp_runtime

FOLDER = Path(os.environ["FGGP_NETWORKS"])


@pytest.fixture
def image():
    return fggp_runtime.load(FOLDER / "image.fggp", threads=1)


@pytest.fixture
def text():
    return fggp_runtime.load(FOLDER / "text.fggp", threads=1)


def arrays(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def assert_close(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if found.dtype == np.float32:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(found, expected)


def test_there_is_no_pytorch_here():
    assert importlib.util.find_spec("torch") is None


def test_an_image_is_classified(image):
    known = arrays("image")
    assert_close(image(known["x"]), known["scores"])


def test_what_a_network_says_of_itself(image, text):
    assert image.inputs == (fggp_runtime.Input("x", np.dtype(np.float32), ("N", 3, "H", "W")),)
    assert image.outputs == ("scores",)
    assert set(image.metadata) == {"input", "author"}
    assert image.metadata["author"] == "an “A”"
    assert repr(image) == "<fggp_runtime.Network (x: float32 [N, 3, H, W]) -> scores>"
    assert repr(text) == "<fggp_runtime.Network (ids: int64 [N, L], mask: bool [N, L]) -> hidden, doubled, unmasked>"
    assert text.metadata == {}


def test_several_outputs_are_a_dict(text):
    known = arrays("text")
    ids, mask = known["ids"], known["mask"]
    for found in (text(ids, mask), text(ids, mask=mask), text(mask=mask, ids=ids)):
        assert list(found) == ["hidden", "doubled", "unmasked"]
        for name, array in found.items():
            assert_close(array, known[name])


def test_outputs_are_the_callers_own(image):
    x = arrays("image")["x"]
    first = image(x)
    kept = first.copy()
    first_again = image(x)
    image(np.zeros_like(x))
    np.testing.assert_array_equal(first, kept)
    first_again[:] = 0
    np.testing.assert_array_equal(image(x), kept)


def test_other_sizes(image):
    x = arrays("image")["x"]
    batch = image(np.concatenate([x, x * 2, x]))
    assert_close(batch[:1], image(x))
    assert image(np.zeros((2, 3, 9, 7))).shape == (2, 3)


@pytest.mark.parametrize(
    "changed",
    [
        lambda x: x.astype(np.float64),
        lambda x: x.astype(">f4"),
        lambda x: np.asfortranarray(x),
        lambda x: np.concatenate([x, x])[::2],
        lambda x: np.frombuffer(b"." + x.tobytes(), np.float32, offset=1).reshape(x.shape),  # unaligned
        lambda x: x.tolist(),
    ],
    ids=["float64", "big-endian", "Fortran order", "strided", "unaligned", "list"],
)
def test_arrays_are_converted(image, changed):
    x = arrays("image")["x"]
    np.testing.assert_array_equal(image(changed(x)), image(x))


def test_integers_are_converted(image, text):
    known = arrays("text")
    np.testing.assert_array_equal(
        text(known["ids"].astype(np.int32), known["mask"])["hidden"], text(known["ids"], known["mask"])["hidden"]
    )
    pixels = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(1, 3, 8, 8)
    np.testing.assert_array_equal(image(pixels), image(pixels.astype(np.float32)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net: net(), TypeError, "the input 'ids' is missing, int64 [N, L]"),
        (lambda net: net([[1]]), TypeError, "the input 'mask' is missing, bool [N, L]"),
        (lambda net: net(1, 2, 3), TypeError, "the network has 2 inputs (ids, mask), not 3"),
        (lambda net: net([[1]], idz=1), TypeError, "the network has no input 'idz'; its inputs are ids, mask"),
        (lambda net: net([[1]], ids=1), TypeError, "the input 'ids' is given twice, by position and by name"),
        (
            lambda net: net([[1.0]], [[True]]),
            TypeError,
            "the input 'ids' is float64, and must be int64; if that",
        ),
        (lambda net: net([[1]], np.int64([[1]])), TypeError, "the input 'mask' is int64, and must be bool"),
        (lambda net: net([["a"]], [[True]]), TypeError, "the input 'ids' is <U1, and must be int64"),
        (lambda net: net([[1], [1, 2]], [[True]]), ValueError, "the input 'ids' is no array"),
        (lambda net: net([1], [[True]]), ValueError, 'the input "ids" is I64 [1]; it must be I64 [N, L]'),
        (lambda net: net([[1]], [[True, True]]), ValueError, 'the input "mask" is BOOL [1, 2]; it must be BOOL [N, L]'),
        (lambda net: net([[50]], [[True]]), ValueError, "embedding"),
    ],
)
def test_wrong_inputs_are_named(text, call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call(text)
    known = arrays("text")
    assert_close(text(known["ids"], known["mask"])["hidden"], known["hidden"])  # it goes on


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.fggp"):
        fggp_runtime.load(tmp_path / "missing.fggp")
    with pytest.raises((IsADirectoryError, PermissionError)):  # as Windows calls it
        fggp_runtime.load(tmp_path)
    (tmp_path / "other.fggp").write_text("This is no network.")
    with pytest.raises(ValueError, match=r"other\.fggp: "):
        fggp_runtime.load(tmp_path / "other.fggp")


def test_damaged_bytes_are_refused():
    data = (FOLDER / "image.fggp").read_bytes()
    assert fggp_runtime.load_bytes(data).outputs == ("scores",)
    for size in range(0, len(data), 7):
        with pytest.raises(ValueError, match=r".{20}"):
            fggp_runtime.load_bytes(data[:size])
        damaged = bytearray(data)
        damaged[size] ^= 1 << size % 8
        with pytest.raises(ValueError, match=r".{20}"):
            fggp_runtime.load_bytes(bytes(damaged))


def test_paths_of_any_kind(tmp_path):
    path = tmp_path / "ü ñ.fggp"
    path.write_bytes((FOLDER / "image.fggp").read_bytes())
    for form in (path, str(path)):
        assert fggp_runtime.load(form).outputs == ("scores",)


def test_threads(image):
    x = arrays("image")["x"]
    one = image(x)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert fggp_runtime.load(FOLDER / "image.fggp").threads == processors
    for threads in (2, 3):
        image.threads = threads
        np.testing.assert_array_equal(image(x), one)
    with pytest.raises(ValueError, match="threads is 0, and must be at least 1"):
        fggp_runtime.load(FOLDER / "image.fggp", threads=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_is_called_from_several_threads(image, threads):
    image.threads = threads
    inputs = [np.random.default_rng(i).standard_normal((1 + i % 3, 3, 8, 8)) for i in range(40)]
    expected = [image(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(image, inputs), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory as Linux counts it")
def test_networks_are_freed():
    code = f"""
import resource, fggp_runtime
data = open({str(FOLDER / "image.fggp")!r}, "rb").read()
def peak(times):
    for _ in range(times):
        fggp_runtime.load_bytes(data, threads=1)([[[[0.0] * 100] * 100] * 3])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak(20)
assert peak(200) < before + 20_000, "kB"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_process_goes_on(image):
    x = arrays("image")["x"]
    image.threads = 2
    expected = image(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(image(x), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


PACKAGE = Path(fggp_runtime.__file__).parent
BUILDS = set(PACKAGE.glob("libfggp_*"))


@pytest.mark.skipif(not BUILDS, reason="there is only one build for this processor, which is libfggp itself")
def test_a_missing_build_is_named(tmp_path):
    package = tmp_path / "fggp_runtime"
    package.mkdir()
    for file in PACKAGE.iterdir():
        if file.is_file() and file not in BUILDS:
            shutil.copy(file, package)
    code = f"import fggp_runtime; fggp_runtime.load({str(FOLDER / 'image.fggp')!r})"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert re.search(
        r"OSError: .*libfggp_\w+\.(so: cannot open shared|dll cannot be loaded|so.* no such file)", done.stderr
    )
