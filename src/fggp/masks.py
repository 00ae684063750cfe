"""Where masks live, how they are applied to weights and optimizer state, and how they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from fggp.layers import Layer
from fggp.prunable import Prunable
from fggp.select import count_marked, counts_marked


class Masks:
    """The masks of a model's prunable weights, one byte a weight, each laid out in memory as its weight is.

    Args:
        weights: the weights, in the order that ranks ties.
        masks: for each a bool tensor of its shape, on any device; copied.
    """

    def __init__(self, weights: Sequence[Prunable], masks: Sequence[Tensor]) -> None:
        self.weights = list(weights)
        self.total = sum(w.parameter.numel() for w in weights)
        self.replace(masks)

    def replace(self, masks: Sequence[Tensor]) -> None:
        """Put other masks in force."""
        self._tensors = [_laid_out_as(w.parameter, m) for w, m in zip(self.weights, masks, strict=True)]
        self._placed = [_place(w.parameter) for w in self.weights]
        self.active = count_marked(self._tensors)

    def change(self, optimizer: torch.optim.Optimizer, layers: Sequence[Layer], marks: Sequence[Tensor]) -> None:
        """Put in force what a selection on these layers returned; what regrows starts at zero, as does its state.

        Args:
            optimizer: whose state is zeroed too.
            layers: what the selection read.
            marks: the weights that are active from now on, [n] for each layer.
        """
        new = [layer.layout.shaped(m) for layer, m in zip(layers, marks, strict=True)]
        torch._foreach_mul_(self._tensors, new)  # of bools: and
        self.apply(optimizer)
        torch._foreach_copy_(self._tensors, new)
        self.active = count_marked(marks)

    def flat(self, layers: Sequence[Layer]) -> list[Tensor]:
        """The masks as marks on these layers: [n] in memory order, views."""
        return [layer.layout.flat(m) for layer, m in zip(layers, self._tensors, strict=True)]

    def counts(self) -> list[int]:
        """How many weights of each layer are active."""
        return counts_marked(self._tensors)

    @property
    def by_name(self) -> Mapping[str, Tensor]:
        """The masks by weight name, read-only."""
        return MappingProxyType({w.name: m for w, m in zip(self.weights, self._tensors, strict=True)})

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero what is pruned in the weights and in every floating-point state tensor of their shape, in one pass."""
        tensors: list[Tensor] = []
        masks: list[Tensor] = []
        for w, mask in zip(self.weights, self._tensors, strict=True):
            tensors.append(w.parameter)
            masks.append(mask)
            for state in optimizer.state.get(w.parameter, {}).values():
                if isinstance(state, Tensor) and state.shape == mask.shape and state.is_floating_point():
                    tensors.append(state)
                    masks.append(mask if mask.device == state.device else mask.to(state.device))
        zero_pruned(tensors, masks)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Notice weights that were replaced, moved, converted or laid out anew since the last call.

        Raises:
            RuntimeError: a weight has been replaced in the model by one that the optimizer does not hold.
        """
        now_there = [(w, w.current()) for w in self.weights]
        replaced = [(w, now) for w, now in now_there if now is not w.parameter]
        reshaped = any(w.parameter.shape != m.shape for w, m in zip(self.weights, self._tensors, strict=True))
        if replaced or reshaped:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for (w, now), mask in zip(now_there, self._tensors, strict=True):
                if now is None or id(now) not in held or now.shape != mask.shape:
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
    return weight.device, weight.stride()


def _laid_out_as(weight: Tensor, mask: Tensor) -> Tensor:
    """A copy of a mask that lies in memory as its weight does, so that both are read in step."""
    return torch.empty_like(weight, dtype=torch.bool, requires_grad=False).copy_(mask)


_INT_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def zero_pruned(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Set tensors to exactly +0 where their mask is False, in place, in one pass over them.

    Args:
        tensors: floating-point tensors of any size, dtype and layout.
        masks: for each a bool tensor of its shape on its device.
    """
    # The bits times 0 or 1: unlike a float product this leaves no -0, turns inf and NaN to zero, and an int times
    # a bool is the cheapest masking there is in torch.
    bits = [t.detach().view(_INT_OF_SIZE[t.element_size()]) for t in tensors]
    torch._foreach_mul_(bits, list(masks))


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
