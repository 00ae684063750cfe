"""Ordered keys: integers in the order of the scores."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fggp.selection.keys import ordered_keys, value_of_key
from tensors import values


@given(st.sampled_from([torch.float32, torch.float64]), st.data())
def test_keys_of_floats(dtype, data):
    v = data.draw(values((20,), dtype, infinite=True))
    v = v[~v.isnan()] * data.draw(st.sampled_from([1, -1]))
    check_keys(v)


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1))
def test_keys_of_integers(numbers):
    check_keys(torch.tensor(numbers))


def check_keys(v):
    keys = [int(k) % (1 << (32 if v.dtype == torch.float32 else 64)) for k in ordered_keys(v)]
    assert [value_of_key(k, v.dtype) for k in keys] == v.tolist()
    for k, x in zip(keys, v.tolist(), strict=True):
        for other, y in zip(keys, v.tolist(), strict=True):
            assert (k < other) == (x < y)
