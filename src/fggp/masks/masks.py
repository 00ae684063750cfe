"""The masks of a model: which of its weights are pruned, kept up to date and applied to weights and optimizer state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from fggp.masks.optimizer_state import zero_weights_and_state
from fggp.masks.packing import digest
from fggp.masks.zeroing import zero_pruned
from fggp.selection.chains import count_marked_each
from fggp.selection.patterns import allowed
from fggp.weights.dtensor import Part, local, placed_as
from fggp.weights.layers import Layer, flatten
from fggp.weights.optimizers import Optimizers
from fggp.weights.processes import Processes
from fggp.weights.prunable import Prunable


class Masks:
    """The masks of a model's prunable weights, one byte a weight, each with the memory layout of its weight.

    For a sharded weight, each process has the mask of its own part. The counts are those of all processes. They are
    updated when the masks change, so reading them takes no communication.

    Args:
        weights: the weights, in the order that ranks ties.
        masks: for each weight a bool tensor of the shape of this process's part, on any device; copied.
        processes: those that hold the weights.

    Attributes:
        total: the number of weights.
        active: how many of them are not pruned.
        counts: how many of each weight tensor are not pruned.
        units: the same in the units that are pruned, weights or groups of them.
        allowed: how many of these units may stay; fewer than ``units`` where weights exceed an N:M pattern.

    Raises:
        RuntimeError: processes that hold the same weights have different masks for them.
    """

    def __init__(self, weights: Sequence[Prunable], masks: Sequence[Tensor], processes: Processes) -> None:
        self.weights = list(weights)
        self.processes = processes
        self.total = sum(w.parameter.numel() for w in weights)
        self.set(masks)

    def set(self, masks: Sequence[Tensor]) -> None:
        """Set the masks without zeroing any weight; all processes call this together.

        Raises:
            RuntimeError: processes that hold the same weights were given different masks for them.
        """
        tensors = [_with_layout_of(w.parameter, m) for w, m in zip(self.weights, masks, strict=True)]
        self.check_same(tensors)
        self._tensors = tensors
        self._placements = [_placement(w.parameter) for w in self.weights]
        self._count(tensors)

    def check_same(self, masks: Sequence[Tensor]) -> None:
        """Compare the masks that processes chose, each by itself, for weights that they all hold.

        Args:
            masks: bool tensors with the memory layout of the weights.

        Raises:
            RuntimeError: they differ. The message names the first weight; all processes raise it.
        """
        if self.processes.replicated:
            digests = [digest(m) for m in masks]
            table = torch.stack([d.to(digests[0].device) for d in digests])  # without waiting for a GPU
            self.processes.check_same(table, [w.name for w in self.weights], "mask")

    def set_and_apply(
        self, optimizers: Optimizers, layers: Sequence[Layer], marks: Sequence[Tensor], regrown: bool
    ) -> None:
        """Set the masks from a selection's result, and zero the pruned weights.

        Weights that were pruned before this update and are regrown start at zero, as does their state.

        Args:
            optimizers: their state is zeroed where the weights are.
            layers: the layers that the selection read.
            marks: the active weights, bool [n] for each layer; they become the masks' memory.
            regrown: whether some of the active weights may have been pruned before.
        """
        new = [layer.layout.shaped(m) for layer, m in zip(layers, marks, strict=True)]
        if regrown:
            torch._foreach_mul_(self._tensors, new)  # old ∧ new, so that regrown weights are zeroed once too
            self.apply(optimizers)
        old, self._tensors = self._tensors, new
        if not regrown:
            try:
                self.apply(optimizers)
            except TypeError:  # nothing was zeroed
                self._tensors = old
                raise
        self._count(marks)

    def _count(self, marks: Sequence[Tensor]) -> None:
        self.counts = self.units = self.allowed = count_marked_each(self.processes.owned, marks, self.processes)
        self.active = sum(self.counts)
        grids = [w.grid for w in self.weights if w.grid is not None]
        if not grids:
            return
        if grids[0].limit is None:
            parts = zip(grids, self.weights, self._tensors, strict=True)
            firsts = [grid.firsts(Part.of(w.parameter), mask) for grid, w, mask in parts]
            self.units = self.allowed = count_marked_each(self.processes.owned, firsts, self.processes)
        else:
            layers = flatten(self.weights, owned=self.processes.owned)
            self.allowed = allowed(layers, self.flat(layers), self.processes)

    def flat(self, layers: Sequence[Layer]) -> list[Tensor]:
        """The masks as a selection reads them: bool [n] in memory order for each layer, views."""
        return [layer.layout.flat(m) for layer, m in zip(layers, self._tensors, strict=True)]

    def with_more(self, weights: Sequence[Prunable], processes: Processes) -> Masks:
        """These masks and those of more weights, none of which is pruned; all processes call this together.

        Args:
            weights: these weights and the others, in the order that ranks ties.
            processes: those that hold the weights.
        """
        own = {w.name: mask for w, mask in zip(self.weights, self._tensors, strict=True)}
        dense = {w.name: torch.ones(local(w.parameter).shape, dtype=torch.bool) for w in weights if w.name not in own}
        return Masks(weights, [{**own, **dense}[w.name] for w in weights], processes)

    @property
    def by_name(self) -> Mapping[str, Tensor]:
        """The masks by weight name, read-only; the mask of a sharded weight is a DTensor, sharded like it."""
        pairs = zip(self.weights, self._tensors, strict=True)
        return MappingProxyType({w.name: placed_as(w.parameter, m) for w, m in pairs})

    def apply(self, optimizers: Optimizers) -> None:
        """Zero pruned weights, and their elements of all optimizer state.

        Raises:
            TypeError: some state cannot be zeroed. Nothing is changed then.
        """
        zero_weights_and_state(optimizers.all, [w.parameter for w in self.weights], self._tensors)

    def apply_to(self, parameters: Mapping[str, Tensor]) -> None:
        """Zero the pruned weights of a copy of the model.

        Args:
            parameters: the copy's tensors by weight name, of the shapes of this process's parts, on any device.
        """
        parts = [local(parameters[w.name]) for w in self.weights]
        zero_pruned(parts, [m.to(p.device) for p, m in zip(parts, self._tensors, strict=True)])

    def zeros_among_active(self) -> tuple[int, int]:
        """How many active weights of this process are zero, of how many; tensors of nothing but zeros do not count."""
        counts = [
            count
            for w, mask in zip(self.weights, self._tensors, strict=True)
            for count in (mask.count_nonzero(), (local(w.parameter).ne(0) & mask).count_nonzero())
        ]
        numbers = _as_ints(counts)
        pairs = [(kept, nonzero) for kept, nonzero in zip(numbers[::2], numbers[1::2], strict=True) if nonzero]
        return sum(kept - nonzero for kept, nonzero in pairs), sum(kept for kept, _ in pairs)

    def revived(self, indices: Sequence[int] | None = None) -> dict[str, int]:
        """How many pruned weights are not zero, by weight name, on this process; only those that have some.

        Args:
            indices: the weights to look at; by default all.
        """
        looked_at = self.weights if indices is None else [self.weights[i] for i in indices]
        return self.revived_in({w.name: w.parameter for w in looked_at})

    def revived_in(self, parameters: Mapping[str, Tensor]) -> dict[str, int]:
        """How many elements of some tensors are not zero where the weight of that name is pruned, if any are."""
        names, counts = [], []
        for w, mask in zip(self.weights, self._tensors, strict=True):
            if w.name in parameters:
                part = local(parameters[w.name])
                names.append(w.name)
                counts.append((part.ne(0) & ~mask.to(part.device)).count_nonzero())
        return {name: count for name, count in zip(names, _as_ints(counts), strict=True) if count}

    def sync_with_model(self, optimizers: Optimizers) -> bool:
        """Adapt to weights that were replaced, or changed device, dtype or memory layout, since the last call.

        Returns:
            Whether some were replaced.

        Raises:
            RuntimeError: a weight was replaced by one that the optimizer does not hold, or of another shape.
        """
        current = [(w, w.current()) for w in self.weights]
        replaced = [(w, now) for w, now in current if now is not w.parameter]
        reshaped = any(local(w.parameter).shape != m.shape for w, m in zip(self.weights, self._tensors, strict=True))
        if replaced or reshaped:
            held = optimizers.held()
            for (w, now), mask in zip(current, self._tensors, strict=True):
                if now is None or id(now) not in held or local(now).shape != mask.shape:
                    raise RuntimeError(
                        f"weight {w.name!r} was replaced in the model by one that the optimizer does not hold or that "
                        f"has another shape: make a new optimizer and call pruner.attach(optimizer)"
                    )
            for w, now in replaced:
                assert now is not None
                w.parameter = now
        for i, w in enumerate(self.weights):
            if _placement(w.parameter) != self._placements[i]:
                self._tensors[i] = _with_layout_of(w.parameter, self._tensors[i])
                self._placements[i] = _placement(w.parameter)
        return bool(replaced)


def _as_ints(counts: Sequence[Tensor]) -> list[int]:
    """Counts as numbers, with one wait for a GPU."""
    numbers: list[int] = torch.stack([count.to(counts[0].device) for count in counts]).tolist() if counts else []
    return numbers


def _placement(weight: Tensor) -> tuple[torch.device, tuple[int, ...]]:
    """The device and the strides of this process's part of a weight."""
    part = local(weight)
    return part.device, part.stride()


def _with_layout_of(weight: Tensor, mask: Tensor) -> Tensor:
    """A copy of a mask with the device and memory layout of its weight, so that a pass reads both in order."""
    return torch.empty_like(local(weight), dtype=torch.bool, requires_grad=False).copy_(mask)
