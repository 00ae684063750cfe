"""Files of version 1 made to do harm, with the right checksum: each is refused, or loads as a valid file."""

import copy
import json
import zlib

import pytest
import torch
import version1_files
from hypothesis import given
from hypothesis import strategies as st
from version1_files import (
    GAPS,
    META,
    VALUES,
    header_and_data,
    move_piece,
    rename_piece,
    sealed,
    set_data_bytes,
    set_header,
    with_long_checksum,
)

import fggp
from altered_files import JSON, load_or_leave, load_or_refuse
from fggp.ship.file import container
from small_files import Holder, assert_refused, each_in_turn


def test_sealing_is_what_save_does(old_sample):
    model, path, raw = old_sample
    assert load_or_refuse(path, sealed(*header_and_data(raw)), model)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (set_header(META, "fggp", value="3"), "has version '3'; this fggp reads versions 1 and 2"),
        (set_header(META, "fggp", value=1), "no metadata"),
        (set_header(META, value=[]), "no metadata"),
        (set_header(META, "sparse:0.weight", value="F32 [4611686018427387904, 4]"), "another model"),
        (set_header(META, "sparse:0.weight", value="F32 [20, 20.0]"), "a tensor of dtype F32"),
        (set_header(META, "sparse:0.weight", value="F32 [-20, -20]"), "another model"),
        (set_header(META, "sparse:0.weight", value="F32 "), "not JSON"),
        (set_header(META, "sparse:0.weight", value="F99 [20, 20]"), "a tensor of dtype F99"),
        (set_header(META, "sparse:0.weight", value="F16 [20, 20]"), "another model"),
        (set_header(META, "sparse:no", value="F32 [20, 20]"), "lacks gaps or values of 'no'"),
        (set_header(META, "sparse:0", value="F32 [20]"), "lacks gaps or values of '0'"),
        (set_header(META, "shared:0.bias", value="1.bias"), "says that '0.bias' is the same as '1.bias'"),
        (set_header(META, "shared:3.weight", value="3.weight"), "the same as"),
        (set_header(META, "shared:3.weight", value="1.bias"), "another model"),
        (set_header(META, "shared:x", value="0.bias"), "has 'x', which the model lacks"),
        (set_header("0.bias", "shape", value=[2**62]), "another model"),
        (set_header("0.bias", "shape", value=[[[]]]), "a tensor of dtype F32"),
        (set_header("0.bias", "shape", value=[20.0]), "a tensor of dtype F32"),
        (set_header("0.bias", "shape", value=[True]), "a tensor of dtype F32"),
        (set_header("0.bias", "shape", value=20), "a tensor of dtype F32"),
        (set_header("0.bias", "dtype", value="I32"), "another model"),
        (set_header("0.bias", "dtype", value=None), "has '0.bias', which is no tensor"),
        (set_header("0.bias", value=3), "has '0.bias', which is no tensor"),
        (set_header("0.bias", "data_offsets", value=[-8, 80]), "is at bytes -8 to 80"),
        (set_header("0.bias", "data_offsets", value=[0, 2**80]), "not JSON"),
        (set_header("0.bias", "data_offsets", value=[0, 10**18]), "is at bytes"),
        (set_header(":crc32", "data_offsets", value=[0, 4]), "is at bytes 0 to 4"),
        (set_header("more", value={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}), "is at bytes 0 to 0"),
        (rename_piece("0.bias", "0.weight"), "has '0.weight' both sparse and dense"),
        (move_piece("2.t0:values", 0, b"\1"), "is at bytes"),
        (move_piece(VALUES, -1, b"\1"), "the pieces of '0.weight' are not those of float32"),
        (rename_piece(":crc32", "crc32"), "no checksum at its end"),
        (with_long_checksum, "no checksum at its end"),
        (set_header(VALUES, "shape", value=[3]), "the pieces of '0.weight' are not those of float32"),
        (set_header(VALUES, "dtype", value="BF16"), "the pieces of '0.weight' are not those of float32"),
        (set_header(VALUES, "dtype", value="I32"), "the pieces of '0.weight' are not those of float32"),
        (set_header(GAPS, "dtype", value="I8"), "the pieces of '0.weight' are not those of float32"),
        (set_header(GAPS, "shape", value=[1]), "the pieces of '0.weight' are not those of float32"),
        (set_data_bytes(GAPS, _0=255), "'0.weight': its gaps place"),
        (set_data_bytes(GAPS, _0=254, _1=254), "'0.weight': its gaps run to"),
        (set_data_bytes("2.t0:values", _0=2), "'2.t0' has bytes that are no bool"),
    ],
)
def test_hostile_files_are_refused(old_sample, change, match):
    model, path, raw = old_sample
    path.write_bytes(sealed(*change(*header_and_data(raw))))
    assert_refused(path, copy.deepcopy(model), match)


def test_gaps_that_run_one_element_too_far_are_refused(tmp_path):
    model = Holder(torch.zeros(1000))
    model.t0[-1] = 1
    version1_files.save(tmp_path / "f", model)
    header, data = header_and_data((tmp_path / "f").read_bytes())
    header, data = set_data_bytes("t0:gaps", _3=235)(header, data)  # 255, 255, 255, and 234 as it was
    (tmp_path / "f").write_bytes(sealed(header, data))
    assert_refused(tmp_path / "f", model, "its gaps run to 1001, beyond its 1000 elements")


def test_a_tensor_without_zeros_may_be_sparse(tmp_path):
    # More bytes than it takes dense: no fggp ever wrote so.
    header = {META: {"fggp": "1", "sparse:t0": "U8 [3]"}}
    for name, begin, end in (("t0:gaps", 0, 3), ("t0:values", 3, 6), (":crc32", 6, 10)):
        header[name] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
    (tmp_path / "f").write_bytes(sealed(header, bytes([0, 0, 0, 1, 2, 3])))
    model = Holder(torch.zeros(3, dtype=torch.uint8))
    fggp.load(tmp_path / "f", model)
    assert model.t0.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        ('{"a":' + "9" * 900_000 + "}", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ("3", "not a JSON object"),
        ("{}", "no metadata"),
        ('{"__metadata__":{"fggp":"1"}}', "its header describes 0"),
        ('{"__metadata__":{"fggp":"2"}}', "its header describes 0"),
        ("[" + "0," * 9_000_000 + "0]", "header of 18,000,003 bytes is too long for a model of 9 tensors"),
        ("\ud800", "not text"),
    ],
    ids=range(10),
)
def test_hostile_headers_are_refused(old_sample, header, match):
    model, path, _ = old_sample
    text = header.encode(errors="surrogatepass")
    path.write_bytes(len(text).to_bytes(8, "little") + text + zlib.crc32(text).to_bytes(4, "little"))
    assert_refused(path, copy.deepcopy(model), match)


@pytest.mark.parametrize("name", ["0.bias", GAPS])
def test_a_file_that_claims_more_than_the_model_holds_is_not_read(old_sample, name, monkeypatch):
    monkeypatch.setattr(container, "read_data", lambda *_: pytest.fail("it is read"))
    model, path, raw = old_sample
    header, data = header_and_data(raw)
    end, size = len(data), 1 << 40
    header, _ = move_piece(name, len(header) - 3, b"")(header, data)
    begin = header[name]["data_offsets"][0]
    header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [begin, begin + size]}
    header[":crc32"]["data_offsets"] = [begin + size, begin + size + 4]
    assert begin < end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + begin + size + 4)  # a hole: takes no space
    assert_refused(
        path, copy.deepcopy(model), "'0.bias' is uint8" if name == "0.bias" else "the pieces of '0.weight' are not"
    )
    path.write_bytes(b"")


@given(st.data())
@each_in_turn
def test_whatever_a_sealed_header_says_a_load_ends_well(old_sample, data):
    model, path, raw = old_sample
    header, body = header_and_data(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        inner = header
        while True:
            key = data.draw(st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner))))
            if isinstance(inner[key], (dict, list)) and inner[key] and data.draw(st.integers(0, 5)):
                inner = inner[key]
            else:
                break
        action = data.draw(st.sampled_from(["replace", "delete", "add", "nudge"]))
        if action == "replace":
            inner[key] = data.draw(JSON)
        elif action == "nudge" and isinstance(inner[key], int):
            inner[key] += data.draw(st.integers(-300, 300))
        elif action == "add" and isinstance(inner, dict):
            names = st.text(max_size=5) | st.sampled_from(["sparse:0.bias", "shared:0.bias", "shared:3.weight"])
            inner[data.draw(names)] = data.draw(JSON | st.sampled_from(["F32 [20]", "0.weight", "0.bias"]))
        elif action == "delete":
            del inner[key]
        if not header:
            break
    load_or_refuse(path, sealed(header, body), model)


@given(st.data())
@each_in_turn
def test_whatever_sealed_data_say_a_load_ends_without_a_crash(old_sample, data):
    model, path, raw = old_sample
    header, body = header_and_data(raw)
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 5))):
        name = data.draw(st.sampled_from([n for n in header if n.endswith((":gaps", "t0:values"))]))
        begin, end = header[name]["data_offsets"]
        changed[data.draw(st.integers(begin, end - 1))] = data.draw(st.sampled_from([0, 1, 2, 100, 254, 255]))
    loaded = load_or_leave(path, sealed(header, bytes(changed)), model)
    if loaded is not None:  # no more and no fewer values than before, somewhere else
        count = model[0].weight.count_nonzero() + model[2].t0.numel()
        assert loaded[0].weight.count_nonzero() + loaded[2].t0.numel() == count
