"""Texts of the caller in a file's metadata."""

import re

import pytest
import torch
from torch import nn

import fggp
from fggp.ship.file import container
from small_files import entries, mlp


def test_texts_of_the_caller_are_kept_and_change_nothing_else(tmp_path):
    model = mlp()
    texts = {"classes": '["cat", "d\u00f6g \U0001f415"]', "": "", "epochs": "12"}
    fggp.save(model, tmp_path / "with", metadata=texts)
    fggp.save(model, tmp_path / "without")
    (pieces, metadata), (expected, own) = entries(tmp_path / "with"), entries(tmp_path / "without")
    assert metadata == {**own, **texts}
    assert set(pieces) == set(expected) == {"tensors"}
    assert torch.equal(pieces["tensors"][:-4], expected["tensors"][:-4])
    assert pieces["tensors"][-4:].ne(expected["tensors"][-4:]).any()  # the checksum
    with_other_bits = mlp()
    fggp.load(tmp_path / "with", with_other_bits)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), with_other_bits.parameters(), strict=True))


def test_as_much_text_as_is_allowed_can_be_read_back(tmp_path):
    room = container.CALLER_METADATA_MAX - len('{"a": ""}')
    model = nn.Linear(1, 1)
    fggp.save(model, tmp_path / "file", metadata={"a": "\u00e9" * (room // 6)})  # six bytes each
    fggp.load(tmp_path / "file", model)
    with pytest.raises(ValueError, match=r"metadata takes 524,289 bytes; it must be 524,288 at most"):
        fggp.save(model, tmp_path / "more", metadata={"a": "x" * (room + 1)})
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"sparse:weight": "F32 [1]"}, ValueError, "'sparse:weight', which is reserved for the file"),
        ({"fggp": "2"}, ValueError, "'fggp', which is reserved for the file"),
        ({"epochs": 12}, TypeError, "{'epochs': 12} must be texts by name: use json.dumps"),
        ({3: "x"}, TypeError, "must be texts by name"),
    ],
)
def test_metadata_that_a_reader_would_misunderstand_are_refused(tmp_path, metadata, error, message):
    with pytest.raises(error, match=re.escape(message)):
        fggp.save(mlp(), tmp_path / "file", metadata=metadata)
    assert not (tmp_path / "file").exists()
