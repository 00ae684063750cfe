"""Which parts of an optimizer's state belong to the elements of a weight, in every format that fggp knows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fggp.masks.zeroing import write_zero_code, write_zero_nibble, zero_pruned
from fggp.weights.dtensor import is_dtensor, local

Path = tuple[Any, ...]
"""The keys that lead from a weight's state to one of its tensors; most have one."""

_CODE_TYPES = (torch.int8, torch.uint8, torch.int16, torch.uint16)
"""Integers that are too short to count steps: state of a weight's shape with such a dtype holds quantised numbers."""


class Part(NamedTuple):
    """State that has one number for each element of a weight.

    Args:
        data: numbers of which all bits are 0 if they are zero, or, with a map, codes; of the weight's shape.
        code_map: maps a code, an index, to its number. None if the numbers are plain.
        packed: whether two codes of 4 bits share a byte, the first in the higher bits; ``data`` is then flat.
    """

    data: Tensor
    code_map: Tensor | None = None
    packed: bool = False


def zero_weights_and_state(
    optimizers: Sequence[torch.optim.Optimizer], parameters: Sequence[Tensor], masks: Sequence[Tensor]
) -> None:
    """Zero pruned weights, and their elements of all optimizer state.

    Everything is found before anything is changed. What is zero bits becomes exactly +0, in one pass. Quantised state
    gets the code of zero; its scales, and so all other elements, stay what they are. One format has no zero, the
    unsigned 4-bit numbers of torchao's second moments: they get the smallest code, which is also what that optimizer
    stores for a moment of zero.

    Args:
        optimizers: all that have state, those inside a wrapper included; a weight may have state in some or none.
        parameters: the weights.
        masks: for each weight a bool tensor of the shape of this process's part, on its device.

    Raises:
        TypeError: an optimizer keeps state of a weight's shape in an unknown format. Nothing is changed then.
    """
    tensors, tensor_masks = [local(p) for p in parameters], list(masks)
    codes: list[tuple[Part, Tensor]] = []
    shapes_differ: dict[tuple[int, Path], bool] = {}
    for parameter, mask in zip(parameters, masks, strict=True):
        seen: list[Any] = []
        for optimizer in optimizers:
            state = optimizer.state.get(parameter)
            if any(state is other for other in seen):  # a wrapper may share the state of what it wraps
                continue
            seen.append(state)
            for part in _parts(optimizer, parameter, shapes_differ):
                there = mask if mask.device == part.data.device else mask.to(part.data.device)
                if part.code_map is None:
                    tensors.append(part.data)
                    tensor_masks.append(there)
                else:
                    codes.append((part, there))
    zero_pruned(tensors, tensor_masks)
    for part, mask in codes:
        assert part.code_map is not None
        if part.packed:
            write_zero_nibble(part.data, mask, part.code_map)
        else:
            write_zero_code(part.data, mask, part.code_map)


def check_state_format(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """Refuse an optimizer whose state cannot be zeroed, as far as that is known before its first step.

    Args:
        optimizer: the optimizer.
        parameters: the weights to be pruned.

    Raises:
        ValueError: it steps where its hooks do not see it, or on a copy of the weights.
        TypeError: it already has state of a weight's shape in an unknown format.
    """
    name = type(optimizer).__name__
    if getattr(optimizer, "_overlap_with_ddp", False):
        raise ValueError(
            f"optimizer={name} with overlap_with_ddp=True changes the weights during the backward pass, not in its "
            f"step: make it with overlap_with_ddp=False"
        )
    if hasattr(optimizer, "param_d2h_map"):  # torchao's, and pytorch_optimizer's copy of it
        raise ValueError(
            f"optimizer={name} trains copies of the weights on the CPU, whose zeros and state fggp cannot reach: use "
            f"the optimizer that it offloads without it"
        )
    shapes_differ: dict[tuple[int, Path], bool] = {}
    for parameter in parameters:
        for _ in _parts(optimizer, parameter, shapes_differ):
            pass


def _parts(
    optimizer: torch.optim.Optimizer, parameter: Tensor, shapes_differ: dict[tuple[int, Path], bool]
) -> Iterator[Part]:
    """The parts of an optimizer's state that have one number for each element of a weight.

    Args:
        optimizer: the optimizer.
        parameter: the weight.
        shapes_differ: results of `_differs_in_shape` so far, by optimizer and path.
    """
    # A ZeroRedundancyOptimizer that loaded a state has None for the weights of other processes.
    state = optimizer.state.get(parameter)
    if not state:
        return
    square = parameter.ndim == 2 and parameter.shape[0] == parameter.shape[1]
    for path, tensor in _tensors(state, ()):
        if tensor.shape != parameter.shape:
            # bitsandbytes' AdEMAMix has two moments in one tensor.
            if path == ("state1",) and tensor.shape[1:] == parameter.shape and _is_from(optimizer, "bitsandbytes"):
                yield from (Part(each, _map_beside(state, path)) for each in local(tensor))
            continue
        if square and tensor.is_floating_point():
            key = (id(optimizer), path)
            if key not in shapes_differ:
                shapes_differ[key] = _differs_in_shape(optimizer, path)
            if shapes_differ[key]:
                continue
        part = _part(optimizer, state, path, tensor)
        if part is not None:
            yield part


def _part(optimizer: torch.optim.Optimizer, state: Mapping[Any, Any], path: Path, tensor: Tensor) -> Part | None:
    """What a tensor of a weight's shape holds; None if it holds no numbers that the optimizer averages.

    Raises:
        TypeError: that is unknown.
    """
    kind = type(tensor)
    if is_dtensor(tensor):
        tensor = local(tensor)
        kind = type(tensor)
    # A subclass that dispatches operations itself keeps its elements as it likes; without, it is a plain tensor.
    if kind.__torch_dispatch__ is Tensor.__torch_dispatch__:
        if tensor.is_floating_point() and tensor.layout == torch.strided:
            return Part(tensor)
        if tensor.dtype in _CODE_TYPES and tensor.layout == torch.strided:
            code_map = _map_beside(state, path)
            if code_map is not None or _has_zero_code_0(state, path):
                return Part(tensor, code_map)
        elif not tensor.is_floating_point():
            return None  # counters and marks
    elif kind.__module__.startswith("torchao."):
        # Their own fields: their operators support little more than what a step needs.
        held: Any = tensor
        if kind.__name__ == "OptimState8bit":
            return Part(held.codes, held.qmap)
        if kind.__name__ == "OptimState4bit":
            return Part(held.codes, held.qmap, packed=True)
        if kind.__name__ == "OptimStateFp8":
            return Part(held.codes)
    raise TypeError(
        f"optimizer={type(optimizer).__name__} keeps its state {'.'.join(map(str, path))!r} of a pruned weight as "
        f"{kind.__name__} of {tensor.dtype}, {tensor.layout}, in which fggp cannot zero single elements: use an "
        f"optimizer with floating-point state"
    )


def _map_beside(state: Mapping[Any, Any], path: Path) -> Tensor | None:
    """The map of bitsandbytes' codes: that of ``state1`` is ``qmap1``."""
    key = path[0]
    found = state.get(f"qmap{key[5:]}") if len(path) == 1 and isinstance(key, str) and key[:5] == "state" else None
    return found if isinstance(found, Tensor) else None


def _has_zero_code_0(state: Mapping[Any, Any], path: Path) -> bool:
    """Whether these are codes of FlashAdamW: numbers with scales beside them, or the low bits of its weights."""
    key = str(path[0])
    return len(path) == 1 and (
        key == "error_bits" or (key.endswith("::quantized") and key.replace("::quantized", "::scales") in state)
    )


def _tensors(value: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    """The tensors in a weight's state with the keys that lead to them, those in dicts and lists included."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _tensors(each, (*path, key))
    elif isinstance(value, (list, tuple, deque)):
        for i, each in enumerate(value):
            yield from _tensors(each, (*path, i))


def _differs_in_shape(optimizer: torch.optim.Optimizer, path: Path) -> bool:
    """Whether state at this path has another shape than its weight, for the first weight that can tell.

    For a square weight, the square factors of Shampoo and its kin have the weight's shape, but not its elements. For
    one that is not square they have another shape.
    """
    for parameter, state in optimizer.state.items():
        if isinstance(parameter, Tensor) and parameter.ndim > 1 and len(set(parameter.shape)) > 1:
            for other_path, tensor in _tensors(state, ()):
                if other_path == path:
                    return tensor.shape != parameter.shape
    return False


def _is_from(optimizer: torch.optim.Optimizer, package: str) -> bool:
    """Whether an optimizer's class is a package's own or derived from one."""
    return any(kind.__module__.split(".")[0] == package for kind in type(optimizer).__mro__)
