"""The gradients that an update reads: this step's, or the last one of a weight that a batch did not use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fggp.weights.dtensor import Part, copy_placed_as, local, local_gradient, own_part
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
    this holds for each matrix by itself. Of a sharded weight, the whole gradient counts: a process may hold a part that
    is zero by chance. So processes tell one another which of the gradients that they keep are zero or not finite.

    To have it, one copy of the gradient is kept of every weight that a step left without one, from that step on, until
    it has had one at each step from one update to the next. Other weights cost nothing.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._updates_without: dict[str, int] = {}

    @torch.no_grad()
    def observe(self, weights: Sequence[Prunable], scales: Sequence[float], processes: Processes) -> None:
        """Keep what a step has of gradients that were once missing; called at every step, by all processes together.

        Nothing is sent at a step that has none of them.

        Args:
            weights: the prunable weights, before the optimizer's step.
            scales: for each the factor to divide its gradient by.
            processes: those that hold the weights.
        """
        present = []
        for w, scale in zip(weights, scales, strict=True):
            if w.parameter.grad is None:
                self._kept.setdefault(w.name, _Kept(w)).missed = True
            elif w.name in self._kept:
                present.append((self._kept[w.name], scale))
        _take_over(present, processes)

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
            not_finite = processes.sum([int(g is not None and not _is_finite(g)) for g in now.tensors])
            now = replace(now, tensors=[None if n else g for g, n in zip(now.tensors, not_finite, strict=True)])
        known = [
            int(g is not None if (kept := self._kept.get(w.name)) is None else kept.is_known())
            for w, g in zip(weights, now.tensors, strict=True)
        ]
        nonzero = [int(flag) for of_weight in _nonzero_parts(weights, now.tensors) for flag in of_weight]
        present, *everywhere = processes.sum([now.present, *known, *nonzero])
        known, of_matrices = everywhere[: len(weights)], iter(everywhere[len(weights) :])
        zero = []
        for i, (w, grad) in enumerate(zip(weights, now.tensors, strict=True)):
            has_zero = 0 in [next(of_matrices) for _ in range(w.matrices)]
            if has_zero and grad is not None and w.parameter.numel() and w.name not in self._kept:
                self._kept[w.name] = _Kept(w)
                zero.append((self._kept[w.name], scales[i]))
                known[i] = 0
        _take_over(zero, processes)
        tensors, used_scales = [], []
        for w, grad, scale in zip(weights, now.tensors, scales, strict=True):
            value = self._kept[w.name].value if w.name in self._kept else None
            tensors.append(grad if value is None else value)
            used_scales.append(scale if value is None else 1.0)
        return Gradients(tensors, used_scales, [n > 0 for n in known], present)

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
            ValueError: a gradient does not have its weight's shape, is no floating-point tensor, or has other matrices.
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
            known = state[w.name]["known"]
            if known.numel() not in (1, w.matrices):
                raise ValueError(
                    f"the last gradient of weight {w.name!r} is known for {known.numel()} matrices: it must be for "
                    f"{w.matrices}"
                )
            part = local(w.parameter)
            kept.value = torch.empty_like(part, dtype=given.dtype, requires_grad=False).copy_(
                own_part(w.parameter, given)
            )
            kept.known = known.bool().reshape(-1).to(part.device).expand(w.matrices)
        return restored


class _Kept:
    """One weight's last gradient: ``value``, unscaled; None before the first.

    Flags are bool tensors [matrices] on the weight's device, so that no step waits for a GPU. They are about the whole
    weight, and so the same on all processes.
    """

    def __init__(self, weight: Prunable) -> None:
        self.weight = weight
        self.value: Tensor | None = None
        self.known: Tensor | None = None  # where there ever was a gradient
        self.fresh: Tensor | None = None  # where there was one since the update before
        self.always: Tensor | None = None  # where there was one at each step since then that had any
        self.missed = False  # whether a step since then had none

    def present(self, scale: float) -> Tensor:
        """This process's part of the present gradient, unscaled."""
        grad = local_gradient(self.weight.parameter)
        assert grad is not None
        grad = grad if grad.layout == torch.strided else grad.to_dense()
        return grad if scale == 1 else grad.float() / scale

    def add(self, grad: Tensor, given: Tensor) -> None:
        """Take over a gradient where it is one.

        Args:
            grad: this process's part, unscaled.
            given: whether it is one, bool [matrices].
        """
        if self.value is None or self.value.dtype != grad.dtype or self.value.device != grad.device:
            old = self.value
            self.value = torch.zeros_like(grad) if old is None else torch.empty_like(grad).copy_(old)
        rows = given
        if self.weight.matrices > 1:
            rows = given[_matrix_of_rows(self.weight, grad.device)].view(-1, *[1] * (grad.ndim - 1))
        self.value.copy_(torch.where(rows, grad, self.value))
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


def _take_over(kept: Sequence[tuple[_Kept, float]], processes: Processes) -> None:
    """Take over present gradients where they are gradients: finite, and not zero throughout.

    Args:
        kept: what is kept of weights that have one, and the factors to divide it by.
        processes: those that hold the weights; all of them call this together.
    """
    grads = [k.present(scale) for k, scale in kept]
    flags = [
        torch.cat([~grad.isfinite().all().view(1), _nonzero(k.weight, grad)])
        for (k, _), grad in zip(kept, grads, strict=True)
    ]
    for (k, _), grad, flag in zip(kept, grads, processes.any(flags), strict=True):
        k.add(grad, flag[1:] & ~flag[0])


def _nonzero(weight: Prunable, grad: Tensor) -> Tensor:
    """For each matrix whether this process's part of a gradient has a value other than zero, bool [matrices]."""
    if weight.matrices == 1:
        return grad.any().view(1)
    rows = grad.flatten(1).any(1).int()
    each = torch.zeros(weight.matrices, dtype=rows.dtype, device=rows.device)
    return each.index_add_(0, _matrix_of_rows(weight, rows.device), rows) > 0


def _matrix_of_rows(weight: Prunable, device: torch.device) -> Tensor:
    """The matrix that each row of this process's part belongs to, int64 [rows]."""
    part = Part.of(weight.parameter)
    index = torch.arange(part.offset[0], part.offset[0] + part.shape[0], device=device)
    return index // (part.full_shape[0] // weight.matrices)


def _nonzero_parts(weights: Sequence[Prunable], gradients: Sequence[Tensor | None]) -> list[list[bool]]:
    """For each weight what `_nonzero` says of this process's part of its gradient.

    A look at the first values settles it nearly always. A GPU is waited for once, or twice if it does not.
    """
    found = [[False] * w.matrices for w in weights]
    given = [(i, w, g) for i, (w, g) in enumerate(zip(weights, gradients, strict=True)) if g is not None and g.numel()]
    plain = [(i, g) for i, w, g in given if w.matrices == 1 and g.layout == torch.strided]
    first = _as_bools([g[(0,) * (g.ndim - 1)][:64].any() for _, g in plain])
    for (i, _), nonzero in zip(plain, first, strict=True):
        found[i] = [nonzero]
    doubtful = [(i, w, g if g.layout == torch.strided else g.to_dense()) for i, w, g in given if not all(found[i])]
    whole = iter(_as_bools([flag for _, w, g in doubtful for flag in _nonzero(w, g)]))
    for i, w, _ in doubtful:
        found[i] = [next(whole) for _ in range(w.matrices)]
    return found


def _as_bools(flags: Sequence[Tensor]) -> list[bool]:
    """Flags as Python bools, with one wait for a GPU."""
    together: list[bool] = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist() if flags else []
    return together
