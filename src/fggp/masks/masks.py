"""Where masks live, how they are applied to weights and optimizer state, and how they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from fggp.scores import splitmix64
from fggp.selection import native_passes
from fggp.selection.chains import counts_marked
from fggp.selection.passes import BLOCK_SIZE
from fggp.weights.dtensor import local, spread_as
from fggp.weights.layers import Layer
from fggp.weights.processes import Processes
from fggp.weights.prunable import Prunable


class Masks:
    """The masks of a model's prunable weights, one byte a weight, each laid out in memory as its weight is.

    Of sharded weights each process has the mask of its own part; counts are those of the whole, as they were when
    the masks last changed: reading them takes no communication.

    Args:
        weights: the weights, in the order that ranks ties.
        masks: for each a bool tensor of its shape (of this process's part of it), on any device; copied.
        processes: those that hold the weights.

    Attributes:
        total: how many weights there are.
        active: how many of them are not pruned.
        counts: how many of each.

    Raises:
        RuntimeError: processes that hold the same weights have different masks for them.
    """

    def __init__(self, weights: Sequence[Prunable], masks: Sequence[Tensor], processes: Processes) -> None:
        self.weights = list(weights)
        self.processes = processes
        self.total = sum(w.parameter.numel() for w in weights)
        self.replace(masks)

    def replace(self, masks: Sequence[Tensor]) -> None:
        """Put other masks in force; all processes call this together.

        Raises:
            RuntimeError: processes that hold the same weights were given different masks for them.
        """
        tensors = [_laid_out_as(w.parameter, m) for w, m in zip(self.weights, masks, strict=True)]
        self.check_same(tensors)
        self._tensors = tensors
        self._placed = [_place(w.parameter) for w in self.weights]
        self._count(tensors)

    def check_same(self, masks: Sequence[Tensor]) -> None:
        """Compare masks that processes chose, each by itself, for weights that they all hold.

        Args:
            masks: bool tensors, laid out in memory as the weights are.

        Raises:
            RuntimeError: they are not the same; it names the first weight, on all processes.
        """
        if self.processes.replicated:
            digests = [digest(m) for m in masks]
            table = torch.stack([d.to(digests[0].device) for d in digests])  # nothing waits for a GPU here
            self.processes.check_same(table, [w.name for w in self.weights], "mask")

    def change(
        self, optimizer: torch.optim.Optimizer, layers: Sequence[Layer], marks: Sequence[Tensor], regrown: bool
    ) -> None:
        """Put in force what a selection on these layers returned; what regrows starts at zero, as does its state.

        Args:
            optimizer: whose state is zeroed too.
            layers: what the selection read.
            marks: the weights that are active from now on, [n] for each layer; they become the masks.
            regrown: whether some of these may have been pruned before.
        """
        new = [layer.layout.shaped(m) for layer, m in zip(layers, marks, strict=True)]
        if regrown:
            torch._foreach_mul_(self._tensors, new)  # of bools: and
            self.apply(optimizer)
        self._tensors = new
        if not regrown:
            self.apply(optimizer)
        self._count(marks)

    def _count(self, marks: Sequence[Tensor]) -> None:
        self.counts = counts_marked(self.processes.owned, marks, self.processes)
        self.active = sum(self.counts)

    def flat(self, layers: Sequence[Layer]) -> list[Tensor]:
        """The masks as marks on these layers: [n] in memory order, views."""
        return [layer.layout.flat(m) for layer, m in zip(layers, self._tensors, strict=True)]

    @property
    def by_name(self) -> Mapping[str, Tensor]:
        """The masks by weight name, read-only; of sharded weights DTensors, sharded as they are."""
        pairs = zip(self.weights, self._tensors, strict=True)
        return MappingProxyType({w.name: spread_as(w.parameter, m) for w, m in pairs})

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero what is pruned in the weights and in every floating-point state tensor of their shape, in one pass."""
        tensors: list[Tensor] = []
        masks: list[Tensor] = []
        for w, mask in zip(self.weights, self._tensors, strict=True):
            tensors.append(local(w.parameter))
            masks.append(mask)
            for state in optimizer.state.get(w.parameter, {}).values():
                if isinstance(state, Tensor) and state.shape == w.parameter.shape and state.is_floating_point():
                    tensors.append(local(state))
                    masks.append(mask if mask.device == state.device else mask.to(state.device))
        zero_pruned(tensors, masks)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Notice weights that were replaced, moved, converted or laid out anew since the last call.

        Raises:
            RuntimeError: a weight has been replaced in the model by one that the optimizer does not hold.
        """
        now_there = [(w, w.current()) for w in self.weights]
        replaced = [(w, now) for w, now in now_there if now is not w.parameter]
        reshaped = any(local(w.parameter).shape != m.shape for w, m in zip(self.weights, self._tensors, strict=True))
        if replaced or reshaped:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for (w, now), mask in zip(now_there, self._tensors, strict=True):
                if now is None or id(now) not in held or local(now).shape != mask.shape:
                    raise RuntimeError(
                        f"weight {w.name!r} was replaced in the model by one that the optimizer does not hold or that "
                        f"has another shape: make optimizer and Pruner anew (init='keep' goes on with the zeros)"
                    )
            for w, now in replaced:
                assert now is not None
                w.parameter = now
        for i, w in enumerate(self.weights):
            if _place(w.parameter) != self._placed[i]:
                self._tensors[i] = _laid_out_as(w.parameter, self._tensors[i])
                self._placed[i] = _place(w.parameter)


def _place(weight: Tensor) -> tuple[torch.device, tuple[int, ...]]:
    part = local(weight)
    return part.device, part.stride()


def _laid_out_as(weight: Tensor, mask: Tensor) -> Tensor:
    """A copy of a mask that lies in memory as its weight does, so that both are read in step."""
    return torch.empty_like(local(weight), dtype=torch.bool, requires_grad=False).copy_(mask)


AT_ONCE = 1 << 24
"""Weights zeroed at a time: a CPU widens their masks in a temporary of 4 or 8 bytes a weight."""

_INT_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def zero_pruned(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Set tensors to exactly +0 where their mask is False, in place, in one pass over them.

    Args:
        tensors: floating-point tensors of any size, dtype and layout.
        masks: for each a bool tensor of its shape on its device.
    """
    left = native_passes.zero(tensors, masks)
    # The bits times 0 or 1: unlike a float product this leaves no -0, turns inf and NaN to zero, and an int times
    # a bool is the cheapest masking there is in torch.
    bits = [p.view(_INT_OF_SIZE[p.element_size()]) for i in left for p in _pieces(tensors[i].detach())]
    if bits:
        torch._foreach_mul_(bits, [p for i in left for p in _pieces(masks[i])])


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    """A tensor in views of not much more than `AT_ONCE` elements."""
    if tensor.numel() <= AT_ONCE or tensor.device.type != "cpu":
        return [tensor]
    d = max(range(tensor.ndim), key=lambda d: tensor.shape[d])
    return torch.split(tensor, max(1, tensor.shape[d] * AT_ONCE // tensor.numel()), dim=d)


def digest(marks: Tensor) -> Tensor:
    """A number that is another one, but for one chance in some 2^60, where a bool tensor is another one.

    Args:
        marks: of any shape; in memory order it is read.

    Returns:
        int64 [], on its device.
    """
    flat = marks.permute(sorted(range(marks.ndim), key=lambda d: -marks.stride()[d])).reshape(-1)
    size = BLOCK_SIZE if marks.device.type == "cpu" else max(1, len(flat))
    total = torch.zeros((), dtype=torch.int64, device=marks.device)
    for i, block in enumerate(torch.split(flat, size)):
        # Eight marks are a word. A sum of words, each times a random odd number of its place, wraps around at 2^64.
        words = torch.nn.functional.pad(block.view(torch.uint8), (0, -len(block) % 8)).clone().view(torch.int64)
        factors = (
            splitmix64(torch.arange(len(words), device=marks.device), i + 1) | 1
        )  # odd: a word counts with all bits
        total += (words * factors).sum()
    return total


def pack(mask: Tensor) -> Tensor:
    """A mask as uint8 [⌈n/8⌉] on the CPU, one bit a weight: row-major, lowest bit first."""
    flat = mask.reshape(-1).cpu()
    padded = torch.nn.functional.pad(flat.view(torch.uint8), (0, -len(flat) % 8)).view(-1, 8)
    packed = torch.zeros(len(padded), dtype=torch.uint8)
    for bit in range(8):
        packed |= padded[:, bit] << bit
    return packed


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `pack`: a bool tensor of the given shape on the CPU.

    Raises:
        ValueError: ``packed`` is not the packed mask of such a shape.
    """
    if packed.dtype != torch.uint8 or packed.shape != (-(-shape.numel() // 8),):
        raise ValueError(f"a packed mask of shape {list(shape)} cannot be {packed.dtype} {list(packed.shape)}")
    bits = torch.stack([(packed >> bit) & 1 for bit in range(8)], dim=1)
    return bits.reshape(-1)[: shape.numel()].bool().view(shape)
