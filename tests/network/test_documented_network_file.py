"""docs/network-file.md: its example is what is written, and the small file's reader reads its tensors."""

import json
import re
from pathlib import Path

import torch

from fggp.ship.network.write import write
from networks import closing, load, load_bytes
from small_files import bits, random_bits
from version2_files import taken_apart

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "network-file.md").read_text()
DESCRIBED, INDEX, BYTES = re.findall(r"^```(?:json)?\n(.*?)^```$", PAGE, re.M | re.S)
READER = re.findall(r"^```\w*\n(.*?)^```$", (DOCS / "small-file.md").read_text(), re.M | re.S)[-1]


def documented_bytes():
    """The bytes of the page's file."""
    parts = [line.encode() if line[0] == "{" else bytes.fromhex(line.split("    ")[0]) for line in BYTES.splitlines()]
    assert len(parts[0]) == 8
    parts[1] = parts[1].ljust(int.from_bytes(parts[0], "little"))
    return b"".join(parts)


def example():
    """The tensors of the page's example."""
    weight = torch.zeros(1, 300)
    weight[0, [2, 5, 299]] = torch.tensor([1.0, -0.5, 2.0])
    return {"weight": weight, "bias": torch.tensor([0.1])}


def test_the_pages_file_is_what_is_written(tmp_path):
    documented, tensors = taken_apart(documented_bytes()), example()
    assert documented.index == json.loads(INDEX)
    description = {key: value for key, value in documented.index["network"].items() if key != "version"}
    write(tmp_path / "f", description, tensors, {"classes": "cat"})
    written = taken_apart((tmp_path / "f").read_bytes())
    assert written.metadata == documented.metadata
    assert written.contents == documented.contents
    # Another version of zstd may compress otherwise.
    assert {**written.index, "frames": None} == {**documented.index, "frames": None}


def test_the_pages_file_runs():
    x = torch.randn(3, 300)
    with closing(load_bytes(documented_bytes())) as network:
        y = network.run({"x": x})["y"]
        assert network.description["metadata"] == {"classes": "cat"}
    expected = torch.nn.functional.linear(x.double(), *(t.double() for t in example().values()))
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_small_files_reader_reads_the_tensors(tmp_path):
    names = {}
    exec(READER, names)
    tensors = {
        "w": random_bits((40, 30), torch.float32, 0.1, 0),
        "i": random_bits((9,), torch.int64, 1, 0),
        "b": random_bits((500,), torch.bool, 0.1, 0),
    }
    tensors["tied"] = tensors["w"]
    write(tmp_path / "f", {"inputs": [], "nodes": [], "outputs": []}, tensors, {})
    read = names["read"](tmp_path / "f")
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].shape == tuple(tensor.shape)
        assert read[name].tobytes() == bits(tensor).numpy().tobytes()
    with closing(load(tmp_path / "f")) as network:
        assert network.run({}) == {}


def test_the_pages_description_is_json():
    assert list(json.loads(DESCRIBED)) == ["version", "inputs", "nodes", "outputs"]
