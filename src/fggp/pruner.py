"""Binds a pruning method to a model and its optimizer."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fggp.graph_breaks import outside_graphs, refuse_capture
from fggp.masks.masks import Masks
from fggp.masks.starts import Init, starting_masks
from fggp.methods import FGGP, Method, OneShot, resolve
from fggp.pruner_arguments import check_scope, check_seed, schedule_for, sparsity_of_given_masks
from fggp.pruner_state import PrunerState
from fggp.pruner_table import layer_table
from fggp.schedule import Curve, cubic
from fggp.update import Choice, Scope, choose, find_obstacle, plan_update
from fggp.weights.averages import Averages
from fggp.weights.checks import check_attached, check_optimizer
from fggp.weights.dtensor import local
from fggp.weights.find import Filter, find_prunable
from fggp.weights.processes import Processes


class Pruner:
    """Prunes a model while an unchanged training loop trains it.

    The pruner acts inside ``optimizer.step()``, through the optimizer's own hooks. Step t is the t-th call since the
    pruner was made, counting from 1. An update reads weights and gradients right before the optimizer changes the
    weights, and chooses which to prune. Whenever ``optimizer.step()`` returns, pruned weights are exactly zero, and
    so are their elements in every floating-point optimizer-state tensor of their shape.

    A call that a ``GradScaler`` skips is not a step. An update is postponed if a gradient is not finite, or if its
    method needs gradients and no weight has one. It then happens at the next step where neither is the case,
    with that step's sparsity; the first postponement warns. If only some weights have no gradient, theirs counts as
    zero, which is their derivative.

    Args:
        model: the model; wrapped (DDP, ``torch.compile``) or not. Its state-dict keys never change.
        optimizer: any optimizer with PyTorch's step hooks that holds all weights to be pruned.
        sparsity: the final share of zeros among the prunable weights, in [init_sparsity, 1); their number is exact.
        begin: the optimizer step from which the schedule counts. The first update is at begin + every (or at ``end``,
            if that is earlier).
        end: the optimizer step from which ``sparsity`` holds.
        every: optimizer steps between two updates. ``begin``, ``end`` and ``every`` are required, except by one-shot
            methods (`fggp.OneShot`), which act when the Pruner is made and take none of the three.
        method: what to prune at an update: a `fggp.Method`, a `fggp.OneShot`, or the lower-case name of a built-in one.
        schedule: how sparsity grows from ``begin`` to ``end``: maps progress in [0, 1] to the share still to prune.
        init_sparsity: the sparsity to start from, in [0, 1); by default 0, or ``sparsity`` itself for methods of
            constant sparsity (RigL, SET).
        init: which weights are zero at the start. ``"erk"`` and ``"uniform"`` draw them at random, with ERK or uniform
            layer densities; a mapping from weight names to bool tensors (True = kept) gives them; ``"keep"`` keeps the
            zeros that the weights have. The last two set ``init_sparsity`` themselves.
        scope: ``"global"`` ranks all weights together; ``"layer"`` ranks each layer's by themselves and prunes the
            same share of every layer.
        include: prune only these weights; see `fggp.weights.find.find_prunable`.
        exclude: leave these weights alone; see `fggp.weights.find.find_prunable`.
        seed: the seed of all random choices. The global generators are never used.

    Attributes:
        method: the method in use.
        schedule: the `fggp.Schedule` in use.
        step: optimizer steps counted so far.
        last_update: the step of the latest update, 0 before the first.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Model and optimizer are then unchanged.

    Source: Zhu, Bezek & Goksel, "Fixed-Rate Gradient-First Gradual Pruning", 2024, arXiv 2411.05500.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: float,
        *,
        begin: int | None = None,
        end: int | None = None,
        every: int | None = None,
        method: Method | OneShot | str = FGGP(),  # noqa: B008 (frozen)
        schedule: Curve = cubic,
        init_sparsity: float | None = None,
        init: Init = "erk",
        scope: Scope = "global",
        include: Filter | Sequence[Filter] | None = None,
        exclude: Filter | Sequence[Filter] | None = None,
        seed: int = 0,
    ) -> None:
        # Check everything before changing anything.
        self.method = resolve(method)
        self.schedule = schedule_for(self.method, sparsity, begin, end, every, schedule, init_sparsity, init)
        check_scope(scope, self.method)
        check_seed(seed)
        weights = find_prunable(model, include, exclude)
        check_optimizer(weights, optimizer)
        processes = Processes.of(model, weights)
        if isinstance(self.method, OneShot):
            if processes.sharded:
                raise ValueError(
                    f"method={self.method.name!r} needs unsharded weights: make a Pruner with it before the model is "
                    f"sharded, and then a second one with init=<masks of the first> and a method that is not one-shot"
                )
            masks = self.method.masks(model, weights, sparsity, seed)
        else:
            masks = starting_masks(weights, init, self.schedule.init_sparsity, seed, processes)
        self._masks = Masks(weights, masks, processes)
        if isinstance(init, Mapping) or init == "keep":  # never with a OneShot: schedule_for refuses that
            given = sparsity_of_given_masks(self._masks, sparsity, init_sparsity)
            self.schedule = replace(self.schedule, init_sparsity=given)
        self._averages = Averages(self.method.averages() if isinstance(self.method, Method) else ())
        hooks = map(inspect.unwrap, optimizer._optimizer_step_pre_hooks.values())
        if any(isinstance(getattr(hook, "__self__", None), Pruner) for hook in hooks):
            warnings.warn("the optimizer has a Pruner already: call its remove() first", UserWarning, stacklevel=2)

        self.scope, self.seed = scope, seed
        self.step = self.last_update = 0
        self._initial_counts = self._masks.counts
        self._overdue = self._warned = self._skipped = self._in_step = False
        self._choice: Choice | None = None  # made before the optimizer's step, applied after it
        self._model, self._optimizer = model, optimizer
        self._masks.apply(optimizer)
        self._hooks = [
            optimizer.register_step_pre_hook(outside_graphs(self._before_step)),
            optimizer.register_step_post_hook(outside_graphs(self._after_step)),
        ]
        # For closures, which a compiled step traces. Made once: a new function at each step would recompile the step.
        self._choose_after_closure = outside_graphs(self._choose_if_due)

    @property
    def sparsity(self) -> float:
        """The share of the prunable weights that is pruned now."""
        return 1 - self._masks.active / self._masks.total

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """The present masks by weight name: bool tensors of the weights' shapes, True = kept; do not write to them."""
        return self._masks.by_name

    def densities(self) -> dict[str, float]:
        """The share of each layer's weights that is kept, by weight name."""
        return {
            w.name: count / w.parameter.numel()
            for w, count in zip(self._masks.weights, self._masks.counts, strict=True)
        }

    def remove(self) -> None:
        """Take the hooks off. Pruned weights are zero when this returns; `masks` stays readable."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._masks.sync_with_model(self._optimizer)
        self._masks.apply(self._optimizer)

    # Around the optimizer's step

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Choose before the optimizer changes the weights; with a closure, once that has computed the gradients."""
        refuse_capture()
        self._choice, self._in_step = None, True
        self._masks.sync_with_model(optimizer)
        if self._is_due(self.step + 1):
            check_attached(self._masks.weights, self._model)
        # An optimizer that unscales by itself (fused) gets found_inf from the GradScaler and skips the step itself.
        found_inf = getattr(optimizer, "found_inf", None)
        self._skipped = found_inf is not None and bool(found_inf)
        if self._skipped:
            return None

        # args[0] is the optimizer itself.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._choose_if_due()
            return None
        if "closure" in kwargs:
            return args, {**kwargs, "closure": self._then_choose(closure)}
        return (args[0], self._then_choose(closure), *args[2:]), kwargs

    def _then_choose(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, followed by the choice, which needs the gradients that it computes."""
        evaluated = False

        def evaluate() -> Any:
            nonlocal evaluated
            if evaluated:
                raise RuntimeError(
                    "the optimizer evaluates its closure several times a step: there is no one gradient to rank by"
                )
            evaluated = True
            loss = closure()
            self._choose_after_closure()
            return loss

        return evaluate

    @torch.no_grad()
    def _choose_if_due(self) -> None:
        """If an update is due at the present step, choose the weights that are active after it, or postpone it."""
        step = self.step + 1
        if self._averages.kinds and (self._overdue or step <= self.schedule.last_update):
            self._averages.update(self._masks.weights, self._grad_scale)
        if not self._is_due(step):
            return
        assert isinstance(self.method, Method)  # the schedule of a OneShot has no updates
        plan = plan_update(
            self.method,
            self.schedule,
            step=step,
            scope=self.scope,
            seed=self.seed,
            masks=self._masks,
            initial_counts=self._initial_counts,
        )
        obstacle = find_obstacle(plan, self.method, self._masks)
        if obstacle is None:
            self._choice = choose(plan, self._masks, self._grad_scale, self._averages)
        elif not self._warned:
            self._warned = True
            message = f"the mask update due at step {step} is postponed: {obstacle} (later postponements do not warn)"
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count the step, apply the choice, and zero the pruned weights."""
        if self._skipped:
            return
        # If an optimizer's step calls its base class's step, the hooks run twice in one step.
        if self._in_step:
            self._in_step = False
            self.step += 1
            self._overdue = self._is_due(self.step) and self._choice is None
        if self._choice is not None:
            self._masks.set_and_apply(optimizer, self._choice.layers, self._choice.active, self._choice.regrown)
            self.last_update, self._choice = self.step, None
        elif self._masks.active < self._masks.total:
            self._masks.apply(optimizer)

    def _is_due(self, step: int) -> bool:
        return self._overdue or self.schedule.is_update(step)

    @property
    def _grad_scale(self) -> float:
        """The factor to divide gradients by: not 1 if a GradScaler lets the optimizer unscale them by itself."""
        scale = getattr(self._optimizer, "grad_scale", None)
        return 1.0 if scale is None else float(scale)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Masks, step and settings, to be loaded with ``weights_only=True``.

        Masks of plain weights are packed to one bit a weight, on the CPU. Masks of sharded weights are DTensors that
        are placed like their weights, for ``torch.distributed.checkpoint``.
        """
        state = PrunerState(
            step=self.step,
            last_update=self.last_update,
            overdue=self._overdue,
            schedule=self.schedule,
            method=self.method,
            scope=self.scope,
            seed=self.seed,
            initial_counts=self._initial_counts,
            masks=self.masks,
            averages=self._averages,
        )
        return state.to_dict(self._masks.weights)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state: its masks, step and settings replace this pruner's own.

        Make model, optimizer and Pruner first, then load their states, in any order. (A Pruner with a sparse start
        zeroes weights when it is made. If it were made after the model's state is loaded, it would destroy some of
        that state.) Pruned weights and their optimizer state are zero when this returns.

        Raises:
            ValueError: the state is damaged, of another model, or of a custom method or schedule that this pruner
                was not made with. The pruner is then unchanged.
        """
        self._masks.sync_with_model(self._optimizer)
        restored = PrunerState.from_dict(state, self._masks.weights, self.method, self.schedule)
        self._masks.set([local(mask) for mask in restored.masks.values()])
        self.method, self.schedule = restored.method, restored.schedule
        self.scope, self.seed = restored.scope, restored.seed
        self.step, self.last_update = restored.step, restored.last_update
        self._overdue, self._choice = restored.overdue, None
        self._initial_counts, self._averages = restored.initial_counts, restored.averages
        self._masks.apply(self._optimizer)

    def __repr__(self) -> str:
        s = self.schedule
        head = (
            f"Pruner({self.method}, scope={self.scope!r}): sparsity {self.sparsity:.2%} at step {self.step}, from "
            f"{s.init_sparsity:.2%} at {s.begin} to {s.sparsity:.2%} at {s.end}, every {s.every}"
        )
        return "\n".join([head, *layer_table(self._masks)])
