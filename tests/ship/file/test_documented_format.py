"""docs/small-file.md: its example is what `fggp.save` writes, and its reader reads any small file."""

import json
import re
from pathlib import Path

import torch
from hypothesis import given

import fggp
from small_files import bits, each_in_turn, holders, mlp, pruned
from version2_files import taken_apart

DOCUMENT = (Path(__file__).parents[3] / "docs" / "small-file.md").read_text()

EXAMPLE, EXAMPLE_BYTES, READER = re.findall(r"^```\w*\n(.*?)^```$", DOCUMENT, re.M | re.S)


def test_the_pages_example_is_what_save_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(EXAMPLE, {})
    lines = EXAMPLE_BYTES.splitlines()
    numbers = [bytes.fromhex(re.match(r"(?:[0-9a-f]{2} ?)+", line)[0]) for line in lines if line[0] != "{"]
    header, index = (line for line in lines if line[0] == "{")
    raw = (tmp_path / "example.safetensors").read_bytes()
    parts = taken_apart(raw)
    shown = json.loads(index)
    assert json.loads(header)["__metadata__"] == parts.metadata
    assert shown["tensors"] == parts.index["tensors"]
    assert {kind: len(own) for kind, own in shown["frames"].items()} == {
        k: len(own) for k, own in parts.contents.items()
    }
    assert [content for own in parts.contents.values() for content in own] == numbers[1:]
    # Another version of zstd may compress otherwise.
    if shown == parts.index:
        assert raw.startswith(numbers[0] + header.encode())


@given(holders())
@each_in_turn
def test_the_pages_reader_reads_what_save_writes(tmp_path, model):
    names = {}
    exec(READER, names)
    for name in [n for n, t in model.state_dict().items() if t.dtype.is_floating_point and t.dtype.itemsize == 1]:
        delattr(model, name)
    if "t0" in dict(model.named_buffers()):
        model.tied = model.t0
    fggp.save(model, tmp_path / "f")
    read = names["read"](tmp_path / "f")
    assert set(read) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        expected = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        assert read[name].shape == tuple(tensor.shape)
        assert read[name].tobytes() == bits(expected).numpy().tobytes()


def test_the_pages_reader_reads_rounded_values(tmp_path):
    names = {}
    exec(READER, names)
    model = pruned(mlp(), 0.9)
    fggp.save(model, tmp_path / "f", values=torch.bfloat16)
    loaded = mlp(1)
    fggp.load(tmp_path / "f", loaded)
    read = names["read"](tmp_path / "f")
    for name, tensor in loaded.state_dict().items():
        assert read[name].tobytes() == bits(tensor).numpy().tobytes()
