"""Binds a pruning method to a model and its optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fggp.layers import Layer, flatten
from fggp.masks import Masks, pack, unpack
from fggp.methods import FGGP, REGISTRY, Method, Update, checked_chain, resolve
from fggp.prunable import Filter, check_attached, check_optimizer, find
from fggp.schedule import CURVES, Curve, Schedule, active_count, apportion, cubic
from fggp.select import TopK, run_chain
from fggp.starts import Init, starting_masks

Scope = Literal["global", "layer"]


class Pruner:
    """Prunes a model while an unchanged training loop trains it.

    It acts inside ``optimizer.step()``, through the optimizer's own hooks. Step t is the t-th call since the pruner
    was made, counting from 1. At an update it reads weights and gradients right before the optimizer changes them
    and chooses the weights that go; whenever ``optimizer.step()`` returns, pruned weights, and every floating-point
    optimizer-state tensor of their shape, are exactly zero there.

    A call that a ``GradScaler`` skips is not a step. An update that meets a non-finite gradient, or no gradient at
    all where its method needs one, is postponed to the next step without, with that step's sparsity; the first
    time it warns. A single weight without a gradient counts as having a zero one, which is its derivative.

    Args:
        model: the model; wrapped (DDP, ``torch.compile``) or not. Its state-dict keys never change.
        optimizer: any optimizer with PyTorch's step hooks that holds all weights to be pruned.
        sparsity: the final share of zeros among the prunable weights, in [init_sparsity, 1), met to the weight.
        begin: the optimizer step before which nothing is pruned.
        end: the optimizer step from which on ``sparsity`` holds.
        every: optimizer steps between two updates.
        method: what to prune at an update: a `fggp.Method` or the lower-case name of a built-in one.
        schedule: how sparsity grows from ``begin`` to ``end``: maps progress in [0, 1] to the share still to go.
        init_sparsity: the sparsity to start from, in [0, 1).
        init: where the zeros to start from lie: ``"erk"`` or ``"uniform"`` draw them at random with such layer
            densities; a mapping from weight names to bool tensors (True = kept) gives them; ``"keep"`` keeps those
            the weights have. The last two set ``init_sparsity`` themselves.
        scope: rank all weights together (``"global"``) or within each layer, every layer then losing the same
            share of its weights (``"layer"``).
        include: prune only these weights; see `fggp.prunable.find`.
        exclude: leave these weights alone; see `fggp.prunable.find`.
        seed: for everything random. The global generators are never used.

    Attributes:
        method: the method in use.
        schedule: the `fggp.Schedule` in use.
        step: optimizer steps counted so far.
        last_update: the step of the latest update, 0 before the first.

    Raises:
        ValueError, TypeError: bad input, named; model and optimizer are then as they were.

    Source: Zhu, Bezek & Goksel, "Fixed-Rate Gradient-First Gradual Pruning", 2024, arXiv 2411.05500.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: float,
        *,
        begin: int,
        end: int,
        every: int,
        method: Method | str = FGGP(),  # noqa: B008 (frozen)
        schedule: Curve = cubic,
        init_sparsity: float = 0.0,
        init: Init = "erk",
        scope: Scope = "global",
        include: Filter | Sequence[Filter] | None = None,
        exclude: Filter | Sequence[Filter] | None = None,
        seed: int = 0,
    ) -> None:
        # Everything is checked before anything is touched.
        self.method = resolve(method)
        Schedule(sparsity, begin, end, every, init_sparsity, schedule)
        if scope not in ("global", "layer"):
            raise ValueError(f"scope={scope!r} must be 'global' or 'layer'")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed={seed!r} must be an int")
        weights = find(model, include, exclude)
        check_optimizer(weights, optimizer)
        start = starting_masks(weights, init, init_sparsity, seed)
        self._masks = Masks(weights, start)
        if isinstance(init, Mapping) or init == "keep":
            init_sparsity = self._own_sparsity(sparsity, init_sparsity)
        self.schedule = Schedule(sparsity, begin, end, every, init_sparsity, schedule)
        if any(isinstance(getattr(h, "__self__", None), Pruner) for h in optimizer._optimizer_step_pre_hooks.values()):
            warnings.warn("the optimizer has a Pruner already: call its remove() first", UserWarning, stacklevel=2)

        self.scope, self.seed = scope, seed
        self.step = self.last_update = 0
        self._start = self._masks.counts()
        self._overdue = self._warned = self._skipped = self._in_step = False
        self._pruned: tuple[list[Layer], list[Tensor]] | None = None  # chosen before a step, put in force after it
        self._model, self._optimizer = model, optimizer
        self._masks.apply(optimizer)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def _own_sparsity(self, sparsity: float, init_sparsity: float) -> float:
        """s_ini of masks that were given: what they have, or exactly ``sparsity`` where they have that already."""
        active, total = self._masks.active, self._masks.total
        if init_sparsity and active != active_count(init_sparsity, total):
            raise ValueError(
                f"init_sparsity={init_sparsity} contradicts init, whose masks have sparsity {1 - active / total}: "
                f"leave it out"
            )
        if active == active_count(sparsity, total):
            return sparsity
        if active < active_count(sparsity, total):
            raise ValueError(f"sparsity={sparsity!r} must be at least {1 - active / total}, which init's masks have")
        return 1 - active / total

    @property
    def sparsity(self) -> float:
        """The share of the prunable weights that is pruned now."""
        return 1 - self._masks.active / self._masks.total

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """The masks in force by weight name: bool tensors of the weights' shapes, True = kept; not to be written to."""
        return self._masks.by_name

    def densities(self) -> dict[str, float]:
        """The share of each layer's weights that is kept, by weight name."""
        return {
            w.name: count / w.parameter.numel()
            for w, count in zip(self._masks.weights, self._masks.counts(), strict=True)
        }

    def remove(self) -> None:
        """Take the hooks off. Weights are zero where pruned when this returns; `masks` stays readable."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._masks.follow(self._optimizer)
        self._masks.apply(self._optimizer)

    # Around the optimizer's step

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._pruned, self._in_step = None, True
        self._masks.follow(optimizer)
        if self._is_due(self.step + 1):
            check_attached(self._masks.weights, self._model)
        # A GradScaler leaves it to optimizers that can to unscale and to skip a step with an inf.
        found_inf = getattr(optimizer, "found_inf", None)
        self._skipped = found_inf is not None and bool(found_inf)
        if self._skipped:
            return None

        # The gradients of a closure exist only once it has run. args[0] is the optimizer itself.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._choose()
            return None
        if "closure" in kwargs:
            return args, {**kwargs, "closure": self._once(closure)}
        return (args[0], self._once(closure), *args[2:]), kwargs

    def _once(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, with the update's choice made when it has run."""
        evaluated = False

        def evaluate() -> Any:
            nonlocal evaluated
            if evaluated:
                raise RuntimeError(
                    "the optimizer evaluates its closure several times a step: which gradient to rank by?"
                )
            evaluated = True
            loss = closure()
            self._choose()
            return loss

        return evaluate

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._skipped:
            return
        # An optimizer whose step calls its base class's fires the hooks twice: that is one step still.
        if self._in_step:
            self._in_step = False
            self.step += 1
            self._overdue = self._is_due(self.step) and self._pruned is None
        if self._pruned is not None:
            self._masks.prune(*self._pruned)
            self.last_update, self._pruned = self.step, None
        self._masks.apply(optimizer)

    def _is_due(self, step: int) -> bool:
        return self._overdue or self.schedule.is_update(step)

    @torch.no_grad()
    def _choose(self) -> None:
        """If an update is due at the step about to be made, choose the weights that it prunes."""
        step = self.step + 1
        if not self._is_due(step):
            return
        plan = self._plan(step)
        obstacle = self._obstacle(plan)
        if obstacle is None:
            self._pruned = self._select(plan)
        elif not self._warned:
            self._warned = True
            message = f"the mask update due at step {step} is postponed: {obstacle} (this is said once)"
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _plan(self, step: int) -> list[tuple[slice, Sequence[TopK]]]:
        """The groups of weights that are ranked together, each with its chain; groups that lose none are left out."""
        active, target = self._masks.active, self.schedule.active_at(step, self._masks.total)
        if self.scope == "global":
            groups = [(slice(None), active, target)]
        else:
            counts = self._masks.counts()
            targets = apportion(min(target, active), self._start, counts)
            groups = [(slice(i, i + 1), a, t) for i, (a, t) in enumerate(zip(counts, targets, strict=True))]
        progress = self.schedule.progress(step)
        return [
            (group, checked_chain(self.method, Update(step, active, active - target, progress, self.seed)))
            for group, active, target in groups
            if active > target
        ]

    def _obstacle(self, plan: list[tuple[slice, Sequence[TopK]]]) -> str | None:
        """Why an update cannot be made with the gradients there are, or None."""
        grads = [g for w in self._masks.weights if (g := w.parameter.grad) is not None]
        if not grads:
            needed = any(step.score.needs_gradient for _, chain in plan for step in chain)
            return f"no weight has a gradient, and {self.method.name!r} ranks by it" if needed else None
        # A norm is one cheap pass and catches every inf and NaN; only one that overflows is looked into.
        for grad, norm in zip(grads, torch._foreach_norm(grads, 1), strict=True):
            if not norm.isfinite() and not grad.isfinite().all():
                return "a gradient is not finite"
        return None

    def _select(self, plan: list[tuple[slice, Sequence[TopK]]]) -> tuple[list[Layer], list[Tensor]]:
        """The weights to be pruned, as marks on the layers they were read from."""
        grad_scale = getattr(self._optimizer, "grad_scale", None)
        layers = flatten(self._masks.weights, grads=True, grad_scale=1.0 if grad_scale is None else float(grad_scale))
        active = self._masks.flat(layers)
        pruned = [torch.zeros_like(m) for m in active]
        for group, chain in plan:
            pruned[group] = run_chain(layers[group], active[group], chain)
        return layers, pruned

    # State

    def state_dict(self) -> dict[str, Any]:
        """Masks (one bit a weight), step and settings: plain values and CPU tensors, for ``weights_only=True``."""
        return {
            "version": 1,
            "step": self.step,
            "last_update": self.last_update,
            "overdue": self._overdue,
            "schedule": {
                "sparsity": float(self.schedule.sparsity),
                "begin": self.schedule.begin,
                "end": self.schedule.end,
                "every": self.schedule.every,
                "init_sparsity": float(self.schedule.init_sparsity),
                "curve": _curve_name(self.schedule.curve),
            },
            "method": {"name": self.method.name, **self.method.settings()},
            "scope": self.scope,
            "seed": self.seed,
            "start": list(self._start),
            "shapes": self._shapes(),
            "masks": {name: pack(m) for name, m in self.masks.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state: its masks, step and settings, which replace this pruner's own.

        Load it when the model and the optimizer have been made; in which order their states are loaded does not
        matter. Weights and optimizer state are zero where pruned when this returns.

        Raises:
            ValueError: the state is damaged, of another model, or of a custom method or schedule that this pruner
                was not made with. The pruner is then as it was.
        """
        self._masks.follow(self._optimizer)
        try:
            restored, masks = self._restore(state)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"state is damaged, or not the state_dict of a Pruner: {error!r}") from error
        vars(self).update(restored, _pruned=None)
        self._masks.replace(masks)
        self._masks.apply(self._optimizer)

    def _restore(self, state: Mapping[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
        """What `load_state_dict` sets, all of it checked: attributes by name, and the masks."""
        if state["version"] != 1:
            raise ValueError(f"state has version {state['version']!r}; this fggp reads version 1")
        shapes, own = state["shapes"], self._shapes()
        differ = sorted(n for n in {*shapes, *own} if shapes.get(n) != own.get(n))
        if differ:
            raise ValueError(
                f"state is of another model: weight {differ[0]!r} has shape {shapes.get(differ[0])} there and "
                f"{own.get(differ[0])} here"
            )
        if list(shapes) != list(own):
            raise ValueError("state is of another model: its weights come in another order")
        settings = dict(state["schedule"])
        curve = _restore_curve(settings.pop("curve"), self.schedule.curve)
        restored = {
            "method": _restore_method(dict(state["method"]), self.method),
            "schedule": Schedule(**settings, curve=curve),
            "scope": state["scope"],
            "seed": int(state["seed"]),
            "step": int(state["step"]),
            "last_update": int(state["last_update"]),
            "_overdue": bool(state["overdue"]),
            "_start": [int(n) for n in state["start"]],
        }
        if restored["scope"] not in ("global", "layer") or len(restored["_start"]) != len(own):
            raise ValueError(f"state is damaged: scope={state['scope']!r}, start={state['start']!r}")
        return restored, [unpack(state["masks"][w.name], w.parameter.shape) for w in self._masks.weights]

    def _shapes(self) -> dict[str, list[int]]:
        return {w.name: list(w.parameter.shape) for w in self._masks.weights}

    def __repr__(self) -> str:
        s = self.schedule
        rows = [
            (w.name, "×".join(map(str, w.parameter.shape)), w.parameter.numel(), kept)
            for w, kept in zip(self._masks.weights, self._masks.counts(), strict=True)
        ]
        rows.append(("total", "", self._masks.total, self._masks.active))
        cells = [("weight", "shape", "weights", "kept", "sparsity")]
        cells += [(name, shape, f"{n:,}", f"{k:,}", f"{1 - k / max(n, 1):.2%}") for name, shape, n, k in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            f"  {r[0]:<{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(r[1:], widths[1:], strict=True))
            for r in cells
        ]
        head = (
            f"Pruner({self.method}, scope={self.scope!r}): sparsity {self.sparsity:.2%} at step {self.step}, from "
            f"{s.init_sparsity:.2%} at {s.begin} to {s.sparsity:.2%} at {s.end}, every {s.every}"
        )
        return "\n".join([head, *lines])


def _curve_name(curve: Curve) -> str:
    return getattr(curve, "__qualname__", type(curve).__qualname__)


def _restore_curve(name: str, own: Curve) -> Curve:
    if name in CURVES:
        return CURVES[name]
    if name == _curve_name(own):
        return own
    raise ValueError(f"state was saved with the schedule {name!r}: make the Pruner with it")


def _restore_method(saved: dict[str, Any], own: Method) -> Method:
    name = saved.pop("name")
    # Its own first: a custom method may have inherited the name of a built-in one.
    if name == own.name:
        return own if saved == own.settings() else type(own)(**saved)
    if name in REGISTRY:
        return REGISTRY[name](**saved)
    raise ValueError(f"state was saved with the method {name!r} {saved}: make the Pruner with it")
