"""Damaged and hostile network files: the library refuses them with a sentence that says why, or runs what they say."""

import json
import random
import zlib
from ctypes import byref, c_void_p

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from altered_files import edited, restructured
from fggp.ship.network.write import write
from networks import REFUSED, Network, Refused, build, closing, library, load, load_bytes
from small_files import bits, each_in_turn, random_bits
from version2_files import compressed, enclosed, entry_of, put_together, taken_apart

TENSORS = {
    "sparse": torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, -2.0, 0.0]]).repeat(8, 10),
    "dense": torch.linspace(-1, 1, 16),
    "numbers": torch.tensor([3, -1, 0, 2**40]),
    "mask": random_bits((300,), torch.bool, 0.1, 0),
    "empty": torch.zeros(0, 3),
    "order": torch.tensor([1, 0, -1]),
}
TENSORS["tied"] = TENSORS["sparse"]
DESCRIPTION = {
    "inputs": [{"name": "x", "type": "F32", "shape": ["N", "M", 4]}],
    "nodes": [
        {"op": "reshape", "name": "flat", "in": [0], "shape": ["N", ["*", "M", 4]]},
        {"op": "linear", "name": "a", "in": [1, "tied", "dense"], "activation": ["clamp", 0, "inf"]},
        {"op": "concat", "name": "both", "in": [2, 2], "dim": 0},
        {"op": "slice", "in": [3], "dim": -1, "start": 1, "stop": ["-", "M", 1], "step": 2},
        {"op": "permute", "in": [4], "dims": [1, 0]},
        {"op": "take", "name": "chosen", "in": [5, "order"], "dim": 0},
    ],
    "outputs": [
        {"name": "y", "value": 6},
        *({"name": name, "value": name} for name in ("sparse", "tied", "numbers", "mask", "empty")),
    ],
    "example": {"N": 1, "M": 10},
}
INPUTS = {"x": torch.arange(80.0).view(2, 10, 4)}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The bytes of a file with every kind of tensor."""
    path = tmp_path_factory.mktemp("network") / "f"
    write(path, DESCRIPTION, TENSORS, {"classes": "cat, dog"})
    return path.read_bytes()


@pytest.fixture(scope="module")
def expected():
    with closing(build(DESCRIPTION, TENSORS)) as network:
        return network.run(INPUTS)


def sealed(raw):
    """The bytes with the checksum that they should have."""
    return raw[:-4] + zlib.crc32(raw[:-4]).to_bytes(4, "little")


def equal(found, expected):
    return list(found) == list(expected) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))
        for a, b in zip(found.values(), expected.values(), strict=True)
    )


def loads_and_runs(raw):
    """Whether these bytes are loaded; if so, they run or refuse to, and what they give is what it says it is."""
    try:
        network = load_bytes(raw)
    except Refused:
        return False
    with closing(network):
        assert set(network.description) == {"inputs", "outputs", "metadata"}
        try:
            outputs = network.run(INPUTS)
        except Refused:
            return True
        for tensor in outputs.values():
            assert tensor.dtype != torch.bool or tensor.view(torch.uint8).le(1).all()
    return True


def test_the_undamaged_file_runs(raw, expected):
    with closing(load_bytes(raw)) as network:
        assert equal(network.run(INPUTS), expected)
        assert network.description["metadata"] == {"classes": "cat, dog"}
    parts = taken_apart(raw)
    assert set(parts.contents) == {"gaps", "F32", "I64", "BOOL"}
    with closing(load_bytes(put_together(parts))) as network:
        assert equal(network.run(INPUTS), expected)


def test_every_single_altered_byte_and_every_truncation_is_noticed(raw):
    chosen = random.Random(0)
    for place in range(len(raw)):
        for altered in (raw[:place] + bytes([raw[place] ^ chosen.randrange(1, 256)]) + raw[place + 1 :], raw[:place]):
            with pytest.raises(Refused):
                load_bytes(altered)


def test_every_single_altered_byte_with_the_right_checksum_ends_well(raw):
    chosen = random.Random(1)
    loaded = 0
    for place in range(len(raw) - 4):
        for change in (1 << chosen.randrange(8), chosen.randrange(1, 256)):
            loaded += loads_and_runs(sealed(raw[:place] + bytes([raw[place] ^ change]) + raw[place + 1 :]))
    assert loaded  # the bytes of values may be any


@given(st.data())
@each_in_turn
def test_random_edits_are_noticed(raw, data):
    altered = data.draw(edited(raw))
    assert loads_and_runs(altered) == (altered == raw)


@given(st.data())
@each_in_turn
def test_random_edits_with_the_right_checksum_end_well(raw, data):
    loads_and_runs(sealed(data.draw(edited(raw))))
    start = 8 + int.from_bytes(raw[:8], "little")
    loads_and_runs(enclosed({"fggp": "2"}, data.draw(edited(raw[start:-4]))))


@given(st.data())
@each_in_turn
def test_whatever_the_index_says_a_load_ends_well(raw, data):
    parts = taken_apart(raw)
    made = {kind: [compressed(own) for own in listed] for kind, listed in parts.contents.items()}
    index = {**parts.index, "frames": {kind: [len(frame) for frame in own] for kind, own in made.items()}}
    if data.draw(st.booleans()):
        index["network"] = data.draw(restructured(index["network"]))
    else:
        index = data.draw(restructured(index))
    loads_and_runs(put_together(parts, made, compressed(json.dumps(index).encode())))


@given(st.data())
@each_in_turn
def test_whatever_the_frames_hold_a_load_ends_well(raw, data):
    parts = taken_apart(raw)
    for _ in range(data.draw(st.integers(1, 5))):
        own = parts.contents[data.draw(st.sampled_from(["gaps", "BOOL", "I64", "F32"]))]
        which = data.draw(st.integers(0, len(own) - 1))
        changed = bytearray(own[which])
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.sampled_from([0, 1, 2, 100, 254, 255]))
        own[which] = bytes(changed)
    loads_and_runs(put_together(parts))


def assert_refused(raw, match):
    with pytest.raises(Refused, match=match):
        load_bytes(raw)


@pytest.mark.parametrize(
    ("altered", "match"),
    [
        (lambda raw: b"", "^the file is cut short: it has 0 bytes"),
        (lambda raw: raw[:7], "^the file is cut short: it has 7 bytes"),
        (lambda raw: raw[:50], "^the file is cut short: it has 50 bytes, and a header of"),
        (lambda raw: raw[:-1], "^the file is cut short: it has .* bytes of data, and its header says"),
        (lambda raw: raw + b"a", "^the file is damaged: it goes on after its end"),
        (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "^the file is damaged: its checksum is wrong"),
        (lambda raw: raw[:8][::-1] + raw[8:], "^the file's numbers are in big-endian byte order"),
        (lambda raw: bytes(999), "^the file is no network file of fggp, or damaged: it cannot have a header of 0"),
        (lambda raw: b"PK\3\4" * 99, "^the file is no network file of fggp, or damaged: it cannot have a header of"),
        (
            lambda raw: raw.replace(b'"2"', b'"3"'),
            '^the file has version "3"; this version of fggp reads networks from',
        ),
        (
            lambda raw: raw.replace(b'"2"', b'"1"'),
            '^the file has version "1"; this version of fggp reads networks from',
        ),
        (lambda raw: raw.replace(b'"fggp"', b'"fgpg"'), "or damaged: its header does not name fggp"),
        (lambda raw: raw.replace(b"cat", b"c\xffa"), "^the file's header is no valid JSON: it is not UTF-8"),
        (lambda raw: raw.replace(b"{", b"[", 1), "^the file's header is no valid JSON"),
    ],
    ids=range(14),
)
def test_the_message_says_what_is_wrong_with_the_file(raw, altered, match):
    assert_refused(altered(raw), match)


def test_the_message_names_the_path(raw, tmp_path):
    (tmp_path / "net.fggp").write_bytes(raw[:-1])
    with pytest.raises(Refused, match=r"/net.fggp: the file is cut short"):
        load(tmp_path / "net.fggp")


def set_entry(name, value):
    def apply(parts):
        listed = parts.index["tensors"]
        at = listed.index(entry_of(parts.index, name))
        listed[at : at + 1] = [] if value is None else [value]

    return apply


def set_field(name, field, value):
    def apply(parts):
        entry_of(parts.index, name)[field] = value

    return apply


def set_contents(kind, change):
    def apply(parts):
        parts.contents[kind] = change(parts.contents[kind])

    return apply


def set_index(**entries):
    return lambda parts: parts.index.update(entries)


def set_network(**entries):
    return lambda parts: parts.index["network"].update(entries)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (set_index(more=1), 'index has an entry "more", which this version of fggp does not know'),
        (
            lambda parts: parts.index.pop("network"),
            "holds the weights of a model, which fggp.save wrote, and no network",
        ),
        (set_index(network=None), "its network has no version"),
        (set_network(version=2), "description has another version than 1, which this version of fggp reads"),
        (set_network(version="1"), "description has another version"),
        (set_network(more=[]), 'it has an entry "more", which this version of fggp does not know'),
        (set_network(example={}), 'its example has no size "N"'),
        (set_network(example={"N": 0, "M": 10}), "where N is at least 1"),
        (set_network(example={"N": 2**40, "M": 2**40}), "is too large"),
        (set_network(example={"N": 1, "M": 3}), r"a \(linear\): "),
        (set_network(example=[]), "its example is no object"),
        (
            set_network(nodes=[{"op": "reshape", "in": ["empty"], "shape": [0] * 65}], outputs=[]),
            "cannot have 65 dimensions",
        ),
        (set_network(inputs=[{"name": "x", "type": "F32", "shape": [1] * 65}]), "cannot have 65 dimensions"),
        (set_network(nodes=[{"op": "reshape", "in": [0], "outputs": 9, "shape": []}]), "a wrong number of outputs"),
        (set_index(tensors={}), "no list of tensors"),
        (set_entry("empty", None), 'it has no tensor "empty"'),
        (set_entry("dense", ["dense"]), "lists something that is no tensor"),
        (set_entry("dense", ["dense", "F32", [16], 1]), "lists something that is no tensor"),
        (set_entry("dense", "dense"), "lists something that is no tensor"),
        (set_entry("dense", [3, "F32", [16]]), "lists something that is no tensor"),
        (set_entry("dense", ["sparse", "F32", [16]]), 'lists the tensor "sparse" twice'),
        (set_entry("tied", ["tied", "tied"]), '"tied" is tied to none that came before it'),
        (set_entry("dense", ["dense", "tied"]), '"dense" is tied to none that came before it'),
        (set_entry("tied", ["sparse", "sparse"]), 'lists the tensor "sparse" twice'),
        (set_field("sparse", 1, "F64"), 'the file\'s tensor "sparse" cannot be part of a network: the type F64 is not'),
        (set_field("sparse", 1, 3), 'its tensor "sparse" has no type and shape'),
        (set_field("sparse", 2, 3), 'its tensor "sparse" has no type and shape'),
        (set_field("sparse", 2, [1] * 65), "a tensor cannot have 65 dimensions; 64 are the most"),
        (set_field("sparse", 2, [16, "40"]), 'its tensor "sparse" has no shape'),
        (set_field("sparse", 2, [16.0, 40]), 'its tensor "sparse" has no shape'),
        (set_field("sparse", 2, [-16, -40]), "a tensor cannot have the shape"),
        (set_field("sparse", 2, [2**62, 4]), "is too large"),
        (set_field("sparse", 2, [0, 2**62, 4]), "is too large"),
        (set_field("sparse", 2, [2**31]), "the file's tensors would take more than"),
        (set_field("mask", 2, [2**29]), "the file's tensors would take more than"),
        (set_field("sparse", 2, [15, 40]), 'the gaps of its tensor "sparse" run beyond its end'),
        (set_field("sparse", 3, 159), '"sparse" place more than its 159 values|frames of F32 hold has'),
        (set_field("sparse", 3, -1), r'"sparse", F32 \[16, 40\], cannot have -1 values'),
        (set_field("sparse", 3, 2**40), "cannot have 1099511627776 values"),
        (set_field("sparse", 4, 641), "cannot have 160 values and 641 gaps"),
        (set_field("sparse", 4, 161), "what its frame of gaps holds has .* bytes, and must have"),
        (set_field("sparse", 3, 1.0), "has no numbers of values and gaps"),
        (lambda parts: entry_of(parts.index, "mask").append("BF16"), "has rounded values of a wrong type"),
        (lambda parts: entry_of(parts.index, "sparse").append("F16"), "has rounded values of a wrong type"),
        (lambda parts: entry_of(parts.index, "sparse").append("BF16"), "it has no frames of BF16"),
        (
            set_contents("gaps", lambda own: [b"\xff" + bytes(159) + own[0][160:]]),
            '"sparse" place 159 values, and it has 160',
        ),
        (
            set_contents("gaps", lambda own: [b"\xfe" * 9 + own[0][9:]]),
            'gaps of its tensor "sparse" run beyond its end',
        ),
        (set_contents("gaps", lambda own: [own[0] + b"a"]), "what its frame of gaps holds has"),
        (set_contents("gaps", lambda own: [own[0], own[0]]), "more than one frame of gaps"),
        (set_contents("gaps", lambda own: []), "more than one frame of gaps|it has no frames of gaps"),
        (set_contents("BOOL", lambda own: [b"\2" + own[0][1:]]), '"mask" has bytes that are no BOOL'),
        (set_contents("F32", lambda own: own[:3]), "it has 3 frames of F32, and must have 4"),
        (set_contents("F32", lambda own: [*own[:3], b""]), "what its frames of F32 hold has 0 bytes, and must have"),
        (set_contents("F32", lambda own: [*own[:3], bytes(1 << 24)]), "hold has 16777216 bytes, and must have"),
        (lambda parts: parts.contents.update(I32=[b"abcd"]), 'it has frames of "I32", which no tensor has values in'),
    ],
    ids=range(55),
)
def test_hostile_indexes_and_frames_are_refused(raw, change, match):
    parts = taken_apart(raw)
    change(parts)
    assert_refused(put_together(parts), match)


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        ([], "its index has no frames"),
        (None, "its index has no frames"),
        ({"gaps": 3}, 'no list of frames of "gaps"'),
        ({"gaps": [0]}, 'a frame of "gaps" of a wrong size'),
        ({"gaps": [-1]}, "of a wrong size"),
        ({"gaps": ["1"]}, "of a wrong size"),
        ({"gaps": [1.0]}, "of a wrong size"),
        ({"gaps": [2**62, 2**62]}, "of a wrong size"),
        ({"gaps": [10**30]}, "of a wrong size"),
        ({"gaps": [1]}, "it has bytes that belong to no frame"),
    ],
    ids=range(10),
)
def test_wrong_sizes_of_frames_are_refused(raw, frames, match):
    parts = taken_apart(raw)
    index = compressed(json.dumps({**parts.index, "frames": frames}).encode())
    assert_refused(put_together(parts, index=index), match)


def claiming(size):
    """A frame that claims to hold this many bytes, in a header of the form with 8 bytes for it, and holds none."""
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\1\0\0"


def of_unknown_size(data):
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(data) + compressor.flush()


def of_a_dictionary(data):
    dictionary = zstandard.ZstdCompressionDict(bytes(range(256)) * 9, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(dict_data=dictionary).compress(data * 9)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda frame, data: frame + b"\0", "cannot be decompressed"),
        (lambda frame, data: frame + frame, "cannot be decompressed"),
        (lambda frame, data: frame[:-1], "cannot be decompressed"),
        (lambda frame, data: frame[:1], "cannot be decompressed"),
        (lambda frame, data: b"\0" * len(frame), "cannot be decompressed"),
        (lambda frame, data: data, "cannot be decompressed"),
        (lambda frame, data: b"\x50\x2a\x4d\x18\4\0\0\0abcd" + frame, "has 0 bytes"),  # a frame to be skipped
        (lambda frame, data: of_unknown_size(data), "cannot be decompressed"),
        (lambda frame, data: of_a_dictionary(data), "bytes, and must have"),
        (lambda frame, data: claiming(1 << 50), "has 1125899906842624 bytes"),
        (lambda frame, data: claiming((1 << 64) - 3), "cannot be decompressed"),
        (lambda frame, data: claiming(len(data)), "cannot be decompressed"),
        (lambda frame, data: claiming(len(data))[:13] + compressed(bytes(1 << 20))[9:], "cannot be decompressed"),
    ],
    ids=range(13),
)
def test_frames_that_are_none_or_hold_something_else_are_refused(raw, change, match):
    parts = taken_apart(raw)
    made = {kind: [compressed(data) for data in own] for kind, own in parts.contents.items()}
    made["gaps"] = [change(made["gaps"][0], parts.contents["gaps"][0])]
    assert_refused(put_together(parts, frames=made), match)


def test_a_frame_that_claims_more_than_it_can_hold_takes_no_memory(raw):
    parts = taken_apart(raw)
    set_entry("mask", ["mask", "BOOL", [1 << 27]])(parts)
    parts.contents["gaps"][0] = parts.contents["gaps"][0][:160]
    made = {kind: [compressed(data) for data in own] for kind, own in parts.contents.items()}
    made["BOOL"] = [claiming(1 << 27)]
    assert_refused(put_together(parts, frames=made), "what its frames of BOOL hold claims more bytes than it can hold")


def test_few_bytes_cannot_claim_much_memory_by_many_tensors(raw):
    parts = taken_apart(raw)
    parts.index["tensors"] += [[f"zeros {i}", "I64", [1 << 20], 0, 0] for i in range(40)]
    assert_refused(
        put_together(parts), r"the file's tensors would take more than \d{9} bytes, which so short a file may no"
    )


def test_ties_take_no_memory(tmp_path):
    """A hundred thousand times 4 MB would be 400 GB."""
    large = torch.ones(1 << 20)
    write(tmp_path / "f", {"inputs": [], "nodes": [], "outputs": []}, {"w": large}, {})
    parts = taken_apart((tmp_path / "f").read_bytes())
    parts.index["tensors"] += [[f"t{i}", "w"] for i in range(100_000)]
    parts.index["network"]["outputs"] = [{"name": "y", "value": "t99999"}]
    with closing(load_bytes(put_together(parts))) as network:
        assert torch.equal(network.run({})["y"], large)


@pytest.mark.parametrize(
    ("index", "match"),
    [
        (compressed(b"[" * 100_000), "the file's index is no valid JSON: it is nested too deep"),
        (compressed(b'{"a":' * 100_000), "the file's index is no valid JSON: it is nested too deep"),
        (compressed(b"\xff"), "the file's index is no valid JSON: it is not UTF-8"),
        (compressed(b'"\xed\xa0\x80"'), "it is not UTF-8"),
        (compressed(b'"\xc0\x80"'), "it is not UTF-8"),
        (compressed(b""), "the file's index is no valid JSON"),
        (compressed(b"[1, 2]"), "and no network"),
        (compressed(b"{}"), "and no network"),
        (compressed(b'{"network": {"version": 1, "version": 1}}'), "an object has a key twice"),
        (compressed(b" " * 18_000_000), r"its index has 18000000 bytes, and must have \d{7} at most"),
        (claiming(1 << 50), "its index has 1125899906842624 bytes"),
        (claiming(1 << 20), "its index claims more bytes than it can hold"),
        (b"", "its index cannot be decompressed"),
        (b"{}", "its index cannot be decompressed"),
    ],
    ids=range(14),
)
def test_a_hostile_index_is_refused(raw, index, match):
    assert_refused(put_together(taken_apart(raw), index=index), match)


def test_many_keys_take_no_long_time():
    """A hundred thousand keys: looked through one by one for each, they would take a minute."""
    text = json.dumps({"__metadata__": {"fggp": "2"} | {f"{i}": "" for i in range(80_000)}}).encode()
    assert_refused(len(text).to_bytes(8, "little") + text, "its header has other entries")


@pytest.mark.parametrize("body", [b"", b"\0\0\0", b"\1\0\0\0", b"\xff\xff\xff\xffabc", b"\0\0\0\0"])
def test_a_hostile_body_is_refused(body):
    assert_refused(enclosed({"fggp": "2"}, body), "^the file is damaged: its index (is longer|cannot be decompressed)")


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"tensor": {"dtype": "U8", "shape": [10], "data_offsets": [0, 10]}},
        {"tensors": {"dtype": "I8", "shape": [10], "data_offsets": [0, 10]}},
        {"tensors": {"dtype": "U8", "shape": [9], "data_offsets": [0, 10]}},
        {"tensors": {"dtype": "U8", "shape": [5, 2], "data_offsets": [0, 10]}},
        {"tensors": {"dtype": "U8", "shape": [10], "data_offsets": [1, 10]}},
        {"tensors": {"dtype": "U8", "shape": [10], "data_offsets": [0, 10], "more": 1}},
        {"tensors": {"dtype": "U8", "shape": [10], "data_offsets": [0]}},
        {"tensors": {"dtype": "U8", "shape": [10.0], "data_offsets": [0, 10.0]}},
        {"tensors": [1]},
        {"tensors": {"dtype": "U8", "shape": [10], "data_offsets": [0, 10]}, "more": 1},
    ],
    ids=range(11),
)
def test_hostile_headers_are_refused(entries):
    raw = enclosed({}, bytes(6), {"__metadata__": {"fggp": "2"}, **entries})
    assert_refused(raw, "^the file is damaged: its header (has other entries|does not say)")


@pytest.mark.parametrize("size", [-1, -(2**63)])
def test_a_size_below_zero_is_refused(raw, size):
    handle = c_void_p()
    assert library().fggp_load_bytes(raw, size, byref(handle)) == REFUSED
    with pytest.raises(Refused, match="a file cannot have -"):
        Network(library(), handle, REFUSED)
