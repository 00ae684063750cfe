"""What a step of training is, when one or several optimizers step, and when a call trains nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fggp.weights.optimizers import only_makes_state
from fggp.weights.prunable import Prunable

Optimizer = torch.optim.Optimizer


class Steps:
    """Makes the steps of optimizers into steps of training.

    With several optimizers, a step of training is complete when the last one steps and all others have stepped. Any
    order would do, were it not for GradScaler: if it skips one of them, the gradients of those that stepped before are
    scaled again when it steps next.

    Args:
        optimizers: those that step, in their order.

    Attributes:
        skipped: whether the present call is none that trains: a GradScaler skips it, or it only makes state.
        idle: the optimizers that have not stepped since the last complete step, if others have.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = list(optimizers)
        self._now: Optimizer | None = None  # the one that steps
        self._stepped: set[int] = set()
        self.skipped = False
        self.idle: list[Optimizer] = []

    def begin(self, optimizer: Optimizer) -> bool:
        """Note that an optimizer's step is called.

        Returns:
            Whether the weights should be as the last complete step left them: no other optimizer has stepped since, and
            the call before did not end in an error, after it changed weights.
        """
        undisturbed = self._now is None and not self._stepped
        # An optimizer that unscales by itself (fused) gets found_inf from the GradScaler and skips the step itself.
        found_inf = getattr(optimizer, "found_inf", None)
        self.skipped = (found_inf is not None and bool(found_inf)) or only_makes_state(optimizer)
        self._now = None if self.skipped else optimizer
        return undisturbed

    @property
    def completes(self) -> bool:
        """Whether a step of training is complete once the present call is."""
        *others, last = self._optimizers
        return self._now is last and all(id(each) in self._stepped for each in others)

    def end(self) -> bool:
        """Note that the call is over.

        Returns:
            Whether a step of training is complete. If an optimizer's step calls its base class's step, the hooks run
            twice in one step, and the second time it is not.
        """
        if self._now is None:
            return False
        complete = self.completes
        self._stepped = set() if complete else {*self._stepped, id(self._now)}
        self._now = None
        self.idle = [] if complete else [each for each in self._optimizers if id(each) not in self._stepped]
        return complete

    def gradient_scales(self, weights: Sequence[Prunable]) -> list[float]:
        """The factors to divide gradients by: not 1 if a GradScaler lets the optimizer unscale them by itself."""
        scale = getattr(self._now, "grad_scale", None)
        if scale is None or self._now is None:
            return [1.0] * len(weights)
        own = {id(p) for group in self._now.param_groups for p in group["params"]}
        return [float(scale) if id(w.parameter) in own else 1.0 for w in weights]
