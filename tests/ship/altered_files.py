"""Files altered after they were saved, for the tests of damaged and hostile files."""

import copy

from hypothesis import strategies as st

import fggp
from small_files import states_equal, with_other_bits

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["F32", "U8"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def load_or_leave(path, raw, model):
    """Load these bytes into a copy of this model with other bits, and return it; None if an error left it alone."""
    path.write_bytes(raw)
    loaded = with_other_bits(model)
    before = copy.deepcopy(loaded)
    try:
        fggp.load(path, loaded)
    except ValueError:
        assert states_equal(loaded, before)
        return None
    return loaded


def load_or_refuse(path, raw, model):
    """Load these bytes, which yields this model or an error that leaves the old values. Returns whether it loaded."""
    loaded = load_or_leave(path, raw, model)
    assert loaded is None or states_equal(loaded, model)
    return loaded is not None


@st.composite
def edited(draw, raw):
    """These bytes after one to four random edits."""
    new = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(new)))
        match draw(st.sampled_from(["insert", "delete", "overwrite", "repeat", "flip"])):
            case "insert":
                new[at:at] = draw(st.binary(min_size=1, max_size=20))
            case "delete":
                del new[at : at + draw(st.integers(1, 20))]
            case "overwrite":
                over = draw(st.binary(min_size=1, max_size=20))
                new[at : at + len(over)] = over
            case "repeat":
                new[at:at] = new[at : at + draw(st.integers(1, 300))]
            case "flip" if at < len(new):
                new[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(new)


@st.composite
def restructured(draw, value):
    """A copy of a JSON value after one to three random edits of what is in it."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        inner = value
        while inner:
            key = draw(st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner))))
            if isinstance(inner[key], (dict, list)) and inner[key] and draw(st.integers(0, 5)):
                inner = inner[key]
            else:
                break
        else:
            break
        action = draw(st.sampled_from(["replace", "delete", "repeat", "nudge"]))
        if action == "replace":
            inner[key] = draw(JSON)
        elif action == "nudge" and isinstance(inner[key], int):
            inner[key] += draw(st.integers(-300, 300))
        elif action == "repeat" and isinstance(inner, list):
            inner.insert(draw(st.integers(0, len(inner))), copy.deepcopy(inner[key]))
        elif action == "delete":
            del inner[key]
    return value
