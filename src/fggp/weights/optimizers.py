"""The optimizers that change a model's weights: which of them step, and where their state lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from fggp.text import listing
from fggp.weights.prunable import Prunable

_PASSING_ON = ("accelerate.", "lightning.", "pytorch_lightning.")
"""Packages whose optimizer wrappers call the wrapped step and change no weight themselves."""

_WRAPPED_AS = ("base", "base_optimizer", "inner_optimizer", "optim", "optimizer", "optimizers")
"""The attributes by which wrappers hold what they wrap. Under any other name an optimizer may never step."""


class Optimizers:
    """The optimizers under one budget, with those that they wrap.

    A wrapper (SAM, Lookahead, Accelerate's) holds another optimizer for the same weights, whose step it calls. That
    inner one is the one that steps: some wrappers have no ``step()`` that is ever called. A wrapper may change weights
    after it (Lookahead), so its own steps are hooked too.

    Args:
        given: an optimizer, a wrapper of one, or several.

    Attributes:
        steppers: those that step, each with step hooks. A training step is complete when each has stepped.
        wrappers: those that wrap them and have step hooks.
        all: steppers, wrappers, and what these hold besides: wherever optimizer state lies.

    Raises:
        TypeError: one is no optimizer, or has no step hooks.
        ValueError: there is none, or one has no one gradient for a step.
    """

    def __init__(self, given: Optimizer | Sequence[Optimizer]) -> None:
        several = list(given) if isinstance(given, (list, tuple)) else [given]
        if not several:
            raise ValueError("optimizer=[] must be an optimizer, or a sequence of at least one")
        self.steppers: list[Optimizer] = []
        self.wrappers: list[Optimizer] = []
        self.all: list[Optimizer] = []
        for each in several:
            self._add(each)

    def _add(self, optimizer: Any) -> None:
        kind = type(optimizer).__name__
        if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "step"):
            raise TypeError(f"optimizer={optimizer!r:.80} must be a torch.optim.Optimizer, or a sequence of them")
        if any(optimizer is known for known in self.all):
            return
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError("optimizer=LBFGS evaluates the loss several times a step: no one gradient belongs to it")
        inner = _inner(optimizer)
        wrapped = [each for name, each in inner if name.lstrip("_") in _WRAPPED_AS]
        wraps = bool(wrapped) and _held([optimizer]) <= _held(wrapped)
        if not (wraps and type(optimizer).__module__.startswith(_PASSING_ON)):
            if not _has_hooks(optimizer):
                raise TypeError(
                    f"optimizer={kind} has no step hooks: its class does not call Optimizer.__init__. Call it there, "
                    f"or pass the torch.optim.Optimizer that it wraps if it changes no weight after that one's step"
                )
            (self.wrappers if wraps else self.steppers).append(optimizer)
        self.all.append(optimizer)
        for _, each in inner:
            if wraps and any(each is one for one in wrapped):
                self._add(each)
            elif all(each is not known for known in self.all):
                self.all.append(each)  # the outer one steps, with it or without it; it may hold state

    def held(self) -> set[int]:
        """The ids of the parameters that the optimizers hold."""
        return _held(self.all)

    def hook(
        self,
        before: Callable[..., Any],
        after: Callable[..., Any],
        after_wrapper: Callable[..., Any],
    ) -> list[Any]:
        """Register functions around the steps.

        Args:
            before: called before the step of each stepper, as a step pre-hook.
            after: called after it, as a step post-hook.
            after_wrapper: called after the step of each wrapper, as a step post-hook.

        Returns:
            The handles, whose ``remove()`` takes the hooks off.
        """
        handles: list[Any] = []
        for optimizer in self.steppers:
            handles += [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
        return handles + [optimizer.register_step_post_hook(after_wrapper) for optimizer in self.wrappers]


def check_held(weights: Iterable[Prunable], optimizers: Optimizers) -> None:
    """Refuse optimizers that lack a weight, as the model holds it now, which is trained.

    Raises:
        ValueError: they do.
    """
    held = optimizers.held()
    current = [(w.name, w.current() if w.owners else w.parameter) for w in weights]
    missing = [name for name, p in current if p is None or (p.requires_grad and id(p) not in held)]
    if missing:
        kinds = ", ".join(type(o).__name__ for o in optimizers.steppers)
        raise ValueError(
            f"optimizer={kinds} does not hold {listing(missing)}: give it all weights to be "
            f"pruned, or leave these out with exclude="
        )


def only_makes_state(optimizer: Optimizer) -> bool:
    """Whether a step is no training but makes the optimizer's state: no learning rate, and no gradient but zeros.

    torch.distributed.checkpoint steps so to have state that it can save or load into.
    """
    for group in optimizer.param_groups:
        rate = group.get("lr")
        plain = isinstance(rate, (int, float)) or (isinstance(rate, torch.Tensor) and rate.device.type == "cpu")
        if rate is None or not plain or float(rate) != 0:
            return False
    return not any(p.grad is not None and bool(p.grad.any()) for g in optimizer.param_groups for p in g["params"])


def _held(optimizers: Iterable[Any]) -> set[int]:
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


def _inner(optimizer: Any) -> list[tuple[str, Any]]:
    """The optimizers that an object has as attributes, alone or in a list, for some of the same weights, by name."""
    found = []
    for name, value in list(getattr(optimizer, "__dict__", {}).items()):
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, Optimizer) and each is not optimizer and _held([each]) & _held([optimizer]):
                found.append((name, each))
    return found


def _has_hooks(optimizer: Any) -> bool:
    """Whether step hooks of an optimizer are called; makes it so where only the class was never prepared for them."""
    if not hasattr(optimizer, "_optimizer_step_pre_hooks") or not hasattr(optimizer, "_optimizer_step_post_hooks"):
        return False
    if not getattr(type(optimizer).step, "hooked", False):
        # Wrappers that set the attributes of Optimizer by hand (timm's Lookahead). torch does this in __init__.
        optimizer._patch_step_function()
    return True
