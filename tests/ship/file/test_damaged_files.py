"""Foreign and damaged files are refused, and the model is left alone."""

import copy

import pytest
import safetensors
import safetensors.torch
import torch
import version1_files
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fggp
from altered_files import edited, load_or_refuse
from small_files import assert_refused, each_in_turn, mlp, pruned, states_equal


def foreign(kind, path):
    if kind == "safetensors":
        safetensors.torch.save_file(dict(mlp().state_dict()), path)
    elif kind == "safetensors with metadata":
        safetensors.torch.save_file(dict(mlp().state_dict()), path, metadata={"format": "pt"})
    elif kind == "zip":
        torch.save(mlp().state_dict(), path)
    else:
        path.write_bytes(
            {"empty": b"", "short": b"\x02\0\0", "text": b"import torch\n" * 99, "zeros": bytes(999)}[kind]
        )


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("empty", "a file of 0 bytes cannot"),
        ("short", "a file of 3 bytes cannot"),
        ("text", "cannot have a header"),
        ("zeros", "cannot have a header of 0"),
        ("zip", "cannot have a header"),
        ("safetensors", "its header has no metadata"),
        ("safetensors with metadata", "its metadata do not name fggp; safetensors.torch.load_file reads"),
    ],
)
def test_foreign_files_are_refused(tmp_path, kind, match):
    foreign(kind, tmp_path / "f")
    assert_refused(tmp_path / "f", mlp(), f"is damaged, or not a file that fggp.save wrote: .*{match}")


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        fggp.load(tmp_path / "f", mlp())


@pytest.mark.parametrize("version", [1, 2])
def test_every_single_altered_byte_and_every_truncation_is_noticed(tmp_path, version):
    path, model = tmp_path / "f", pruned(nn.Linear(30, 10), 0.9)
    if version == 1:
        version1_files.save(path, model)
    else:
        fggp.save(model, path)
    raw, untouched = path.read_bytes(), copy.deepcopy(model)
    assert f'"fggp":"{version}"'.encode() in raw
    changes = torch.randint(1, 256, (len(raw),), generator=torch.Generator().manual_seed(0)).tolist()
    for place, change in enumerate(changes):
        for altered in (raw[:place] + bytes([raw[place] ^ change]) + raw[place + 1 :], raw[:place]):
            path.write_bytes(altered)
            with pytest.raises(ValueError, match="path="):
                fggp.load(path, model)
    assert states_equal(model, untouched)


@pytest.mark.parametrize("version", [1, 2])
@given(data=st.data())
@each_in_turn
def test_random_edits_are_noticed(sample, old_sample, version, data):
    model, path, raw = sample if version == 2 else old_sample
    altered = data.draw(edited(raw))
    assert load_or_refuse(path, altered, model) == (altered == raw)
