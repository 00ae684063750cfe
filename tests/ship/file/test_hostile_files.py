"""Files made to do harm, with the right checksum: each is refused, or loads as a valid file."""

import copy
import json

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import fggp
from altered_files import edited, load_or_leave, load_or_refuse, restructured
from fggp.ship.file import container, frames
from small_files import Holder, assert_refused, each_in_turn
from version2_files import compressed, enclosed, entry_of, put_together, taken_apart


def test_putting_together_what_was_taken_apart_changes_nothing(sample):
    model, path, raw = sample
    assert load_or_refuse(path, put_together(taken_apart(raw)), model)


def set_entry(name, value):
    """Replace what the index says of a tensor; None: remove it."""

    def apply(parts):
        listed = parts.index["tensors"]
        at = listed.index(entry_of(parts.index, name))
        listed[at : at + 1] = [] if value is None else [value]

    return apply


def set_field(name, field, value):
    """Replace one value that the index has of a tensor; a function changes it."""

    def apply(parts):
        entry = entry_of(parts.index, name)
        entry[field] = value(entry[field]) if callable(value) else value

    return apply


def set_contents(kind, change):
    """Change what the frames of a kind hold: a list of bytes."""

    def apply(parts):
        parts.contents[kind] = change(parts.contents[kind])

    return apply


def first_byte(value):
    return lambda own: [bytes([value]) + own[0][1:], *own[1:]]


def set_index(**entries):
    return lambda parts: parts.index.update(entries)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (set_entry("0.weight", ["0.weight", "F32", [4611686018427387904, 4], 40, 40]), "another model"),
        (set_field("0.weight", 2, [20, 20.0]), "a tensor of dtype F32"),
        (set_field("0.weight", 2, [20, True]), "a tensor of dtype F32"),
        (set_field("0.weight", 2, [-20, -20]), "another model"),
        (set_field("0.weight", 2, 400), "a tensor of dtype F32"),
        (set_field("0.weight", 1, "F99"), "a tensor of dtype F99"),
        (set_field("0.weight", 1, "F16"), "another model"),
        (set_field("0.weight", 1, None), "its index has .'0.weight', None.*, which is no tensor"),
        (set_field("0.weight", 0, 3), "which is no tensor"),
        (set_field("0.weight", 3, "many"), "which is no tensor"),
        (set_field("0.weight", 3, 1.0), "which is no tensor"),
        (set_field("0.weight", 3, -1), "'0.weight', float32 .20, 20., cannot have -1 values"),
        (set_field("0.weight", 3, lambda n: n + 1), "cannot have"),
        (set_field("0.weight", 3, lambda n: n - 1), "the frames of F32 hold"),
        (set_field("0.weight", 4, lambda n: n + 1), "the frames of gaps hold"),
        (set_field("0.weight", 4, 2**62), "cannot have"),
        (set_field("0.weight", 4, 401), "cannot have"),
        (set_entry("0.weight", ["0.weight", "F32", [20, 20], 30, 30, "F16"]), "which is no tensor"),
        (
            set_entry("2.t0", ["2.t0", "BOOL", [400], 30, 30, "BF16"]),
            "has values of '2.t0', bool .400., that are rounde",
        ),
        (set_entry("0.bias", None), "it lacks '0.bias'"),
        (set_entry("0.bias", ["x", "F32", [20]]), "it lacks '0.bias', and has 'x', which the model lacks"),
        (set_entry("0.bias", ["0.bias"]), "which is no tensor"),
        (set_entry("0.bias", []), "which is no tensor"),
        (set_entry("0.bias", "0.bias"), "which is no tensor"),
        (set_entry("0.bias", {"0.bias": 1}), "which is no tensor"),
        (set_entry("0.bias", ["0.weight", "F32", [20]]), "has '0.weight' twice"),
        (set_entry("0.bias", ["0.bias", "1.bias"]), "which is no tensor"),  # the other comes later
        (set_entry("1.bias", ["1.bias", "0.weight"]), "another model"),
        (set_entry("3.weight", ["3.weight", "3.weight"]), "which is no tensor"),
        (set_entry("3.weight", ["3.weight", "F32", [20, 20]]), "the frames of F32 hold"),
        (set_index(tensors={}), "no list of tensors"),
        (set_index(tensors=None), "no list of tensors"),
        (set_index(more=1), "not of tensors and frames"),
        (set_contents("gaps", first_byte(255)), "'0.weight': its gaps place"),
        (set_contents("gaps", lambda own: [b"\xfe\xfe" + own[0][2:]]), "'0.weight': its gaps run to"),
        (set_contents("gaps", lambda own: [own[0] + b"a"]), "the frames of gaps hold"),
        (set_contents("gaps", lambda own: [own[0], own[0]]), "has 2 frames of gaps, and must have 1"),
        (set_contents("gaps", lambda own: [own[0][:-1]]), "the frames of gaps hold"),
        (set_contents("BOOL", first_byte(2)), "'2.t0' has bytes that are no bool"),
        (set_contents("F32", lambda own: own[:3]), "has 3 frames of F32, and must have 4"),
        (set_contents("F32", lambda own: []), "has 0 frames of F32, and must have 4"),
        (set_contents("F32", lambda own: [*own[:3], b""]), "the frames of F32 hold 0 bytes"),
        (set_contents("F32", lambda own: [*own[:3], bytes(1 << 24)]), "the frames of F32 hold 16,777,216 bytes"),
    ],
)
def test_hostile_files_are_refused(sample, change, match):
    model, path, raw = sample
    parts = taken_apart(raw)
    change(parts)
    path.write_bytes(put_together(parts))
    assert_refused(path, copy.deepcopy(model), match)


@pytest.mark.parametrize("kind", ["F16", "F99", "", "tensors"])
def test_frames_of_another_kind_are_refused(sample, kind):
    model, path, raw = sample
    parts = taken_apart(raw)
    parts.contents[kind] = [b"ab", b"cd"]
    path.write_bytes(put_together(parts))
    assert_refused(path, copy.deepcopy(model), "it has frames of .*, and must have them of 'gaps, F32, I64, BOOL'")
    del parts.contents[kind], parts.contents["I64"]
    path.write_bytes(put_together(parts))
    assert_refused(path, copy.deepcopy(model), "it has frames of 'gaps, F32, BOOL', and must have them of 'gaps, F32, ")


def claiming(size):
    """A frame that claims to hold this many bytes, in a header of the form with 8 bytes for it, and holds none."""
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\1\0\0"


def of_unknown_size(data):
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda frame, data: frame + b"\0", "the frames of gaps cannot be decompressed"),
        (lambda frame, data: frame + frame, "cannot be decompressed"),
        (lambda frame, data: frame[:-1], "cannot be decompressed"),
        (lambda frame, data: frame[:1], "cannot be decompressed"),
        (lambda frame, data: b"\0" * len(frame), "cannot be decompressed"),
        (lambda frame, data: data, "cannot be decompressed"),
        (lambda frame, data: b"\x50\x2a\x4d\x18\4\0\0\0abcd" + frame, "hold 0 bytes"),  # a frame to be skipped
        (lambda frame, data: of_unknown_size(data), "hold -1 bytes"),
        (lambda frame, data: claiming(1 << 50), "hold 1,125,899,906,842,624 bytes"),
        (lambda frame, data: claiming(len(data)), "cannot be decompressed"),
        (lambda frame, data: claiming(len(data))[:13] + compressed(bytes(1 << 20))[9:], "cannot be decompressed"),
    ],
    ids=range(11),
)
def test_frames_that_are_none_or_hold_something_else_are_refused(sample, change, match):
    model, path, raw = sample
    parts = taken_apart(raw)
    made = {kind: [compressed(data) for data in own] for kind, own in parts.contents.items()}
    made["gaps"] = [change(made["gaps"][0], parts.contents["gaps"][0])]
    path.write_bytes(put_together(parts, frames=made))
    assert_refused(path, copy.deepcopy(model), match)


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        ([], "no lists of frames"),
        (None, "no lists of frames"),
        ({"gaps": 3}, "no lists of frames"),
        ({"gaps": [0]}, "a frame of no size"),
        ({"gaps": [-1]}, "a frame of no size"),
        ({"gaps": [True]}, "a frame of no size"),
        ({"gaps": ["1"]}, "a frame of no size"),
        ({"gaps": [1.0]}, "a frame of no size"),
        ({"gaps": [1]}, "bytes of frames; its index describes 1"),
        ({"gaps": [2**62, 2**62]}, "bytes of frames; its index describes"),
        ({"gaps": [10**30]}, "its index is not JSON"),
    ],
)
def test_wrong_sizes_of_frames_are_refused(sample, frames, match):
    model, path, raw = sample
    parts = taken_apart(raw)
    index = compressed(json.dumps({"tensors": parts.index["tensors"], "frames": frames}).encode())
    path.write_bytes(put_together(parts, index=index))
    assert_refused(path, copy.deepcopy(model), match)


@pytest.mark.parametrize(
    ("index", "match"),
    [
        (compressed(b"[" * 100_000), "its index is not JSON"),
        (compressed(b'{"a":' * 100_000), "its index is not JSON"),
        (compressed(b"\xff"), "its index is not text"),
        (compressed(b""), "its index is not JSON"),
        (compressed(b"[1, 2]"), "its index is not of tensors and frames"),
        (compressed(b"3"), "its index is not of tensors and frames"),
        (compressed(b"{}"), "its index is not of tensors and frames"),
        (compressed(b" " * 18_000_000), "the bytes of its index hold 18,000,000 bytes, but must hold 1,"),
        (claiming(1 << 50), "the bytes of its index hold 1,125,"),
        (b"", "the bytes of its index cannot be decompressed"),
        (b"{}", "the bytes of its index cannot be decompressed"),
    ],
    ids=range(11),
)
def test_a_hostile_index_is_refused(sample, index, match):
    model, path, raw = sample
    path.write_bytes(put_together(taken_apart(raw), index=index))
    assert_refused(path, copy.deepcopy(model), match)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"", "'tensors' is not as long as it should be"),
        (b"\0\0\0", "'tensors' is not as long as it should be"),
        (b"\1\0\0\0", "cannot have an index of 1"),
        (b"\xff\xff\xff\xffabc", "11 bytes of data for 9 tensors cannot have an index of 4,294,967,295"),
        (b"\0\0\0\0", "cannot be decompressed"),
    ],
)
def test_a_hostile_body_is_refused(sample, body, match):
    model, path, _ = sample
    path.write_bytes(enclosed({"fggp": "2"}, body))
    assert_refused(path, copy.deepcopy(model), match)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({}, "bytes of data; its header describes 0"),
        ({"tensor": {"dtype": "U8", "shape": [10], "data_offsets": [0, 10]}}, "it has other pieces than 'tensors'"),
        ({"tensors": {"dtype": "I8", "shape": [10], "data_offsets": [0, 10]}}, "it has other pieces than 'tensors'"),
        ({"tensors": {"dtype": "U8", "shape": [9], "data_offsets": [0, 10]}}, "'tensors' is not as long as"),
        ({"tensors": {"dtype": "U8", "shape": [5, 2], "data_offsets": [0, 10]}}, "'tensors' is not as long as"),
        (
            {
                "tensors": {"dtype": "U8", "shape": [6], "data_offsets": [0, 6]},
                ":crc32": {"dtype": "U8", "shape": [4], "data_offsets": [6, 10]},
            },
            "it has other pieces than 'tensors'",
        ),
    ],
)
def test_hostile_headers_are_refused(sample, entries, match):
    model, path, _ = sample
    path.write_bytes(enclosed({}, bytes(6), {"__metadata__": {"fggp": "2"}, **entries}))
    assert_refused(path, copy.deepcopy(model), match)


@pytest.mark.parametrize("of", ["another model", "this model", "nothing"])
def test_data_larger_than_the_model_can_need_are_not_read(sample, of, monkeypatch):
    monkeypatch.setattr(container, "read_data", lambda *_: pytest.fail("it is read"))
    model, path, raw = sample
    parts = taken_apart(raw)
    if of == "another model":
        entry_of(parts.index, "0.bias")[0] = "more"
    index = compressed(json.dumps(parts.index).encode()) if of != "nothing" else b""
    size = 1 << 40
    header = {"__metadata__": {"fggp": "2"}, "tensors": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + len(index).to_bytes(4, "little") + index)
        file.truncate(8 + len(text) + size)  # a hole: takes no space
    match = {
        "another model": "is of another model: it lacks '0.bias', and has 'more'",
        "this model": "it has 1,099,511,627,776 bytes of data, and this model needs",
        "nothing": "the bytes of its index cannot be decompressed",
    }[of]
    assert_refused(path, copy.deepcopy(model), match)
    path.write_bytes(b"")


def test_nothing_is_decompressed_before_its_size_is_known(sample, monkeypatch):
    # Whatever a frame holds, its bytes are allocated only after they were found to be as many as the model needs.
    model, path, raw = sample
    parts = taken_apart(raw)
    limit = container.description_limit(model.state_dict())
    allowed = []
    decompress = frames.decompress

    def recorded(frame, smallest, largest, what):
        allowed.append((largest, what))
        return decompress(frame, smallest, largest, what)

    monkeypatch.setattr(frames, "decompress", recorded)
    path.write_bytes(raw)
    fggp.load(path, copy.deepcopy(model))
    assert allowed[0] == (limit, "the bytes of its index")
    assert sorted(size for size, _ in allowed[1:]) == sorted(len(d) for own in parts.contents.values() for d in own)


def test_gaps_that_run_one_element_too_far_are_refused(tmp_path):
    model = Holder(torch.zeros(1000))
    model.t0[-1] = 1
    fggp.save(model, tmp_path / "f")
    parts = taken_apart((tmp_path / "f").read_bytes())
    assert parts.contents["gaps"] == [bytes([255, 255, 255, 234])]
    parts.contents["gaps"] = [bytes([255, 255, 255, 235])]
    (tmp_path / "f").write_bytes(put_together(parts))
    assert_refused(tmp_path / "f", model, "its gaps run to 1001, beyond its 1000 elements")


def test_a_tensor_without_zeros_may_be_sparse(tmp_path):
    # More bytes than it takes dense: `save` does not write so.
    model = Holder(torch.zeros(3, dtype=torch.uint8))
    fggp.save(model, tmp_path / "f")
    parts = taken_apart((tmp_path / "f").read_bytes())
    parts.index["tensors"] = [["t0", "U8", [3], 3, 3]]
    parts.contents = {"U8": [bytes([1, 2, 3])], "gaps": [bytes(3)]}  # in whatever order
    (tmp_path / "f").write_bytes(put_together(parts))
    fggp.load(tmp_path / "f", model)
    assert model.t0.tolist() == [1, 2, 3]


@given(st.data())
@each_in_turn
def test_whatever_a_sealed_index_says_a_load_ends_well(sample, data):
    model, path, raw = sample
    parts = taken_apart(raw)
    made = {kind: [compressed(own) for own in listed] for kind, listed in parts.contents.items()}
    index = {**parts.index, "frames": {kind: [len(frame) for frame in own] for kind, own in made.items()}}
    index = data.draw(restructured(index))
    load_or_refuse(path, put_together(parts, made, compressed(json.dumps(index).encode())), model)


@given(st.data())
@each_in_turn
def test_whatever_sealed_frames_hold_a_load_ends_without_a_crash(sample, data):
    model, path, raw = sample
    parts = taken_apart(raw)
    for _ in range(data.draw(st.integers(1, 5))):
        kind = data.draw(st.sampled_from(["gaps", "BOOL"]))
        changed = bytearray(parts.contents[kind][0])
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.sampled_from([0, 1, 2, 100, 254, 255]))
        parts.contents[kind] = [bytes(changed)]
    loaded = load_or_leave(path, put_together(parts), model)
    if loaded is not None:  # no more and no fewer values than before, somewhere else
        assert loaded[0].weight.count_nonzero() == model[0].weight.count_nonzero()


@given(st.data())
@each_in_turn
def test_whatever_sealed_bytes_follow_the_header_a_load_ends_without_a_crash(sample, data):
    model, path, raw = sample
    start = 8 + int.from_bytes(raw[:8], "little")
    body = data.draw(edited(raw[start:-4]))
    load_or_leave(path, enclosed({"fggp": "2"}, body), model)
