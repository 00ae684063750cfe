"""The gradients that an update reads: this step's, or the last one of a weight that a batch did not use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fggp.weights.dtensor import copy_placed_as, is_sharded, local, local_gradient, own_part
from fggp.weights.processes import Processes
from fggp.weights.prunable import Prunable


@dataclass(frozen=True)
class Gradients:
    """What a selection reads, for each weight.

    Args:
        tensors: this process's part of the gradient, strided or sparse; None if there has never been one, which counts
            as zero.
        scales: the factor to divide it by.
        known: whether all of the weight has a gradient, or had one since a step first left it out, on any process.
        present: how many weights have a gradient at this step, on all processes.
    """

    tensors: list[Tensor | None]
    scales: list[float]
    known: list[bool]
    present: int

    @staticmethod
    def of_this_step(weights: Sequence[Prunable], scales: Sequence[float] | None = None) -> Gradients:
        """This step's gradients of one process, whatever they are."""
        tensors = [local_gradient(w.parameter) for w in weights]
        known = [g is not None for g in tensors]
        return Gradients(tensors, list(scales or [1.0] * len(weights)), known, sum(known))

    def strided(self) -> list[Tensor]:
        """The values of the gradients that there are, without the zeros of sparse ones."""
        return [g if g.layout == torch.strided else g.coalesce().values() for g in self.tensors if g is not None]


class LastGradients:
    """The last gradient of each weight that some step left without one: an unused head, a skipped block, an expert.

    Being left out of one batch says nothing about a weight, so at an update such a weight is ranked by the gradient
    of the last step that had one. A gradient that is zero throughout counts as none. In a batch of matrices (experts)
    this holds for each matrix by itself.

    To have it, one copy of the gradient is kept of every weight that a step left without one, from that step on, until
    it has had one at each step from one update to the next. Other weights cost nothing.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._updates_without: dict[str, int] = {}

    @torch.no_grad()
    def observe(self, weights: Sequence[Prunable], scales: Sequence[float]) -> None:
        """Keep what a step has of gradients that were once missing; called at every step.

        Args:
            weights: the prunable weights, before the optimizer's step.
            scales: for each the factor to divide its gradient by.
        """
        for w, scale in zip(weights, scales, strict=True):
            missing, kept = w.parameter.grad is None, self._kept.get(w.name)
            if missing:
                self._kept.setdefault(w.name, _Kept(w)).missed = True
            elif kept is not None:
                kept.add(scale)

    @torch.no_grad()
    def read(
        self, weights: Sequence[Prunable], scales: Sequence[float], processes: Processes, finite: bool = False
    ) -> Gradients:
        """The gradients for an update, those of this step included; all processes call this together.

        Args:
            weights: the prunable weights, before the optimizer's step.
            scales: for each the factor to divide its gradient by.
            processes: those that hold the weights.
            finite: whether to leave out gradients that are not finite.
        """
        now = Gradients.of_this_step(weights, scales)
        if finite:
            now = replace(now, tensors=[g if g is not None and _is_finite(g) else None for g in now.tensors])
        for i in _where_zero(weights, now.tensors):
            if weights[i].name not in self._kept:
                self._kept[weights[i].name] = _Kept(weights[i])
                self._kept[weights[i].name].add(scales[i])
        tensors, used_scales, known = [], [], []
        for w, grad, scale in zip(weights, now.tensors, scales, strict=True):
            kept = self._kept.get(w.name)
            known.append(grad is not None if kept is None else kept.is_known())
            if kept is None or kept.value is None:
                tensors.append(grad)
                used_scales.append(scale)
            else:
                tensors.append(kept.value)
                used_scales.append(1.0)
        everywhere = processes.sum([*map(int, known), now.present])
        return Gradients(tensors, used_scales, [n > 0 for n in everywhere[:-1]], everywhere[-1])

    def count_update(self) -> None:
        """Note, at each update, which weights have had no gradient since the update before, or always had one.

        Those that always had one are let go.
        """
        for name, kept in list(self._kept.items()):
            self._updates_without[name] = 0 if kept.is_fresh() else self._updates_without.get(name, 0) + 1
            if kept.was_complete():
                del self._kept[name]

    def release(self) -> None:
        """Let go of all gradients: no update is to come."""
        self._kept = {}

    def without(self, updates: int) -> list[str]:
        """The names of the weights that had no gradient at all in this many updates in a row."""
        return [name for name, count in self._updates_without.items() if count >= updates]

    def state_dict(self, weights: Sequence[Prunable]) -> dict[str, dict[str, Any]]:
        """Copies of what is kept, by weight name: on the CPU, or placed like a sharded weight."""
        state: dict[str, dict[str, Any]] = {}
        for w in weights:
            kept = self._kept.get(w.name)
            if kept is not None:
                state[w.name] = {"gap": kept.has_gap()}
                if kept.value is not None and kept.known is not None:
                    state[w.name]["value"] = copy_placed_as(w.parameter, kept.value)
                    state[w.name]["known"] = kept.known.to("cpu", copy=True)
        return state

    @staticmethod
    def restored(state: Mapping[str, Mapping[str, Any]], weights: Sequence[Prunable]) -> LastGradients:
        """Read what `state_dict` returned; all processes call this together.

        Raises:
            ValueError: a gradient does not have its weight's shape, or is no floating-point tensor.
        """
        restored = LastGradients()
        for w in weights:
            if w.name not in state:
                continue
            kept = restored._kept[w.name] = _Kept(w)
            kept.missed = bool(state[w.name]["gap"])
            given = state[w.name].get("value")
            if given is None:
                continue
            if given.shape != w.parameter.shape or not given.is_floating_point():
                raise ValueError(
                    f"the last gradient of weight {w.name!r} is {given.dtype} {list(given.shape)}: it must be a "
                    f"floating-point tensor {list(w.parameter.shape)}"
                )
            part = local(w.parameter)
            kept.value = torch.empty_like(part, dtype=given.dtype, requires_grad=False).copy_(
                own_part(w.parameter, given)
            )
            kept.known = state[w.name]["known"].bool().to(part.device)
        return restored


class _Kept:
    """One weight's last gradient: ``value``, unscaled; None before the first.

    Flags are tensors on the weight's device, so that no step waits for a GPU: one for the weight, or one for each row
    of a batch of matrices.
    """

    def __init__(self, weight: Prunable) -> None:
        self.weight = weight
        self.value: Tensor | None = None
        self.known: Tensor | None = None  # where there ever was a gradient
        self.fresh: Tensor | None = None  # where there was one since the update before
        self.always: Tensor | None = None  # where there was one at each step since then that had any
        self.missed = False  # whether a step since then had none

    def add(self, scale: float) -> None:
        """Take over the present gradient where it is one: finite, and not zero throughout."""
        grad = local_gradient(self.weight.parameter)
        assert grad is not None
        grad = grad if grad.layout == torch.strided else grad.to_dense()
        grad = grad if scale == 1 else grad.float() / scale
        if is_sharded(self.weight.parameter):
            # A process may hold a part that is zero, or not finite, by chance: here a gradient is one if it is there.
            grad, given = grad.nan_to_num(0.0, 0.0, 0.0), torch.ones((), dtype=torch.bool, device=grad.device)
        else:
            given = grad.isfinite().all() & _nonzero(self.weight, grad)
        if self.value is None or self.value.dtype != grad.dtype or self.value.device != grad.device:
            old = self.value
            self.value = torch.zeros_like(grad) if old is None else torch.empty_like(grad).copy_(old)
        self.value.copy_(torch.where(given, grad, self.value))
        self.known = given if self.known is None else given | self.known.to(given.device)
        self.fresh = given if self.fresh is None else given | self.fresh.to(given.device)
        self.always = given if self.always is None else given & self.always.to(given.device)

    def is_known(self) -> bool:
        """Whether all of the weight has once had a gradient."""
        return self.known is not None and bool(self.known.all())

    def is_fresh(self) -> bool:
        """Whether some of it has had one since the update before."""
        return self.fresh is not None and bool(self.fresh.any())

    def has_gap(self) -> bool:
        """Whether a step since the update before had no gradient for all of it."""
        return self.missed or (self.always is not None and not bool(self.always.all()))

    def was_complete(self) -> bool:
        """Whether each step since the last call had a gradient for all of it."""
        complete = self.always is not None and not self.has_gap()
        self.fresh, self.always, self.missed = None, None, False
        return complete


def _is_finite(grad: Tensor) -> bool:
    return bool((grad if grad.layout == torch.strided else grad.coalesce().values()).isfinite().all())


def _nonzero(weight: Prunable, grad: Tensor) -> Tensor:
    """Whether a gradient has a value other than zero: bool [], or [rows, 1, …] for a batch of matrices."""
    if weight.matrices == 1:
        return grad.any()
    each = grad.reshape(weight.matrices, -1).any(1)
    return each.repeat_interleave(grad.shape[0] // weight.matrices).view(-1, *[1] * (grad.ndim - 1))


def _where_zero(weights: Sequence[Prunable], gradients: Sequence[Tensor | None]) -> list[int]:
    """The indices of the gradients that are, or of which one matrix is, zero throughout.

    A look at the first values settles it nearly always. A GPU is waited for once, or twice if it does not.
    """
    looked_at = [
        (i, weights[i], g)
        for i, g in enumerate(gradients)
        if g is not None and g.numel() and not is_sharded(weights[i].parameter)
    ]
    plain = [w.matrices == 1 and g.layout == torch.strided for _, w, g in looked_at]
    first = _as_bools([g[(0,) * (g.ndim - 1)][:64].any() for (*_, g), p in zip(looked_at, plain, strict=True) if p])
    settled = iter(first)
    doubtful = [each for each, p in zip(looked_at, plain, strict=True) if not (p and next(settled))]
    whole = _as_bools([_nonzero(w, g if g.layout == torch.strided else g.to_dense()).all() for _, w, g in doubtful])
    return [i for (i, *_), nonzero in zip(doubtful, whole, strict=True) if not nonzero]


def _as_bools(flags: Sequence[Tensor]) -> list[bool]:
    """Flags as Python bools, with one wait for a GPU."""
    together: list[bool] = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist() if flags else []
    return together
