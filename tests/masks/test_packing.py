"""Masks packed to one bit a weight, and their digests."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fggp.masks.packing import digest, pack, unpack
from fggp.selection.passes import BLOCK_SIZE
from helpers import identical
from tensors import bool_masks, layouts


@given(bool_masks(), st.data())
@example(torch.ones(1, dtype=torch.bool), None)
@example(torch.ones(0, 3, dtype=torch.bool), None)
def test_unpacking_gives_the_mask_back_whatever_its_shape_and_layout(mask, data):
    packed = pack(mask if data is None else data.draw(layouts(mask)))
    assert packed.dtype == torch.uint8
    assert packed.shape == (math.ceil(mask.numel() / 8),)
    flat = mask.reshape(-1).tolist()
    assert packed.tolist() == [
        sum(kept << bit for bit, kept in enumerate(flat[i : i + 8])) for i in range(0, len(flat), 8)
    ]
    assert identical(unpack(packed, mask.shape), mask)


@pytest.mark.parametrize(
    "packed", [torch.zeros(1, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int8)]
)
def test_a_packed_mask_of_another_shape_or_dtype_is_refused(packed):
    with pytest.raises(ValueError, match=r"packed mask of shape \[3, 5\] cannot be torch"):
        unpack(packed, torch.Size([3, 5]))


@given(bool_masks(), st.data())
def test_a_digest_tells_masks_apart_that_differ_in_one_place(mask, data):
    other = mask.clone()
    where = data.draw(st.integers(0, mask.numel() - 1))
    other.view(-1)[where] ^= True
    assert digest(mask) == digest(mask.clone())
    assert digest(mask) != digest(other)
    if where:
        swapped = other.clone()
        swapped.view(-1)[0] ^= True
        assert digest(swapped) != digest(mask)


def test_digests_of_masks_with_one_weight_each_all_differ():
    """As of ranks that disagree about one weight: wherever in a word of eight bytes it lies."""
    masks = torch.eye(4096, dtype=torch.bool)
    assert len({int(digest(mask)) for mask in masks}) == len(masks)


def test_a_digest_of_many_blocks():
    mask = torch.rand(3 * BLOCK_SIZE // 100, 101) < 0.5
    seen = {int(digest(mask))}
    for where in (0, BLOCK_SIZE - 1, BLOCK_SIZE, 2 * BLOCK_SIZE + 5, mask.numel() - 1):
        mask.view(-1)[where] ^= True
        seen.add(int(digest(mask)))
    assert len(seen) == 6
