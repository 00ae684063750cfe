"""Positions as gaps, against the obvious loop."""

from itertools import accumulate

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from version1_files import gap_codes

from fggp.ship.file import gaps

SIZES = st.one_of(st.integers(0, 20), st.sampled_from([253, 254, 255, 256, 509, 510, 511, 765, 10_000]))


def decoded(codes):
    """The positions, decoded in parts of 5 codes, and as they are by default."""
    whole = torch.cat(list(gaps.decode(codes)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaps, "CHUNK", 5)
        parts = list(gaps.decode(codes))
    assert all(len(part) <= 5 and part.dtype == torch.int64 for part in parts)
    assert torch.equal(torch.cat(parts), whole)
    return whole.tolist()


@given(st.lists(SIZES, max_size=40), SIZES)
@example([], 0)
@example([0], 0)
@example([0] * 40, 0)
@example([254, 254], 0)
@example([255, 255], 0)
@example([255 * 1000], 0)
def test_codes_are_those_of_the_loop_and_come_back(sizes, after):
    positions = [p - 1 for p in accumulate(s + 1 for s in sizes)]
    length = (positions[-1] + 1 if positions else 0) + after
    codes = gaps.encode(torch.tensor(positions, dtype=torch.int64))
    assert codes.dtype == torch.uint8
    assert codes.tolist() == gap_codes(positions)
    gaps.check(codes, len(positions), length)
    assert decoded(codes) == positions


@given(st.integers(0, 2000), st.sampled_from([0.0, 0.001, 0.01, 0.5, 1.0]), st.integers(0, 99))
def test_masks_of_any_density_come_back(n, density, seed):
    mask = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < density
    positions = mask.nonzero().squeeze(1)
    codes = gaps.encode(positions)
    assert codes.tolist() == gap_codes(positions.tolist())
    gaps.check(codes, len(positions), n)
    assert decoded(codes) == positions.tolist()


@given(st.lists(st.integers(0, 255), max_size=12), st.integers(-1, 13), st.integers(0, 3100))
def test_check_accepts_just_what_lies_in_the_tensor(codes, count, length):
    # What a reader that goes byte by byte would meet.
    place, values = 0, 0
    for code in codes:
        place += code if code == 255 else code + 1
        values += code != 255
    fine = values == count and place <= length
    given_codes = torch.tensor(codes, dtype=torch.uint8)
    if fine:
        gaps.check(given_codes, count, length)
        assert all(0 <= p < length for p in decoded(given_codes))
    else:
        with pytest.raises(ValueError, match="its gaps"):
            gaps.check(given_codes, count, length)
