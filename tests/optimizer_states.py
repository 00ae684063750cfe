"""Reads optimizer state of every format as plain numbers, without the functions of the packages that keep it."""

import warnings
from collections import deque
from collections.abc import Mapping

import pytest
import torch


def package(name):
    """A package that is only needed here, imported without its warnings; the test is skipped if it is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def torchao_numbers(state):
    """The numbers of a tensor of torchao's; a copy of any other tensor."""
    kind = type(state).__name__
    if kind == "OptimStateFp8":
        numbers = state.codes.float()
    elif kind == "OptimState8bit":
        numbers = state.qmap[state.codes.long()]
    elif kind == "OptimState4bit":
        numbers = state.qmap[torch.stack([state.codes // 16, state.codes % 16], 1).long()]
    else:
        return state.detach().clone()
    return (numbers.view(len(state.scale), -1) * state.scale[:, None]).view(state.shape)


def bitsandbytes_numbers(state):
    """The numbers of a weight's state in bitsandbytes: codes in blocks of 256 with a scale each, or floats."""
    found = {}
    for i in ("1", "2"):
        if f"state{i}" in state and f"qmap{i}" in state:
            codes = state[f"state{i}"]
            moments = codes.view(-1, *codes.shape[-2:]).flatten(1)  # AdEMAMix has two in one tensor
            scales = state[f"absmax{i}"].view(len(moments), -1).repeat_interleave(256, 1)
            found[i] = (state[f"qmap{i}"][moments.long()] * scales[:, : moments.shape[1]]).view(codes.shape)
        elif f"state{i}" in state:
            found[i] = state[f"state{i}"].clone()
    return found


def numbers_of(state, shape):
    """All numbers, [..., *shape] each, that a weight's state has for its elements, by the path of their keys."""
    if "state1" in state:
        return bitsandbytes_numbers(state)
    found = {}
    for path, tensor in tensors_in(state, ()):
        if tensor.shape != shape:
            continue
        if tensor.is_floating_point():
            found[path] = torchao_numbers(tensor)
        elif str(path[-1]).endswith("::quantized") or path[-1] == "error_bits":  # FlashAdamW
            found[path] = tensor.float()
    return found


def tensors_in(value, path):
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from tensors_in(each, (*path, key))
    elif isinstance(value, (list, tuple, deque)):
        for i, each in enumerate(value):
            yield from tensors_in(each, (*path, i))
