"""Binds a pruning method to a model and its optimizer."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fggp import pruner_state
from fggp.graph_breaks import outside_graphs, refuse_capture
from fggp.masks.masks import Masks
from fggp.masks.starts import Init, starting_masks
from fggp.methods import FGGP, Method, OneShot, Update, checked_chain, resolve
from fggp.schedule import Curve, Schedule, active_count, apportion, cubic
from fggp.selection import passes
from fggp.selection.chains import Exchange, Marks, TopK, run_chain, run_exchange
from fggp.weights.averages import Averages
from fggp.weights.checks import check_attached, check_optimizer
from fggp.weights.dtensor import local_gradient
from fggp.weights.find import Filter, find_prunable
from fggp.weights.layers import Layer, flatten
from fggp.weights.processes import Processes

Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class _Plan:
    """An update: groups of weights ranked together with the chains that prune them, then an exchange in each layer."""

    chains: list[tuple[slice, Sequence[TopK]]]
    exchange: Exchange | None

    @property
    def needs_gradient(self) -> bool:
        scores = [step.score for _, chain in self.chains for step in chain]
        if self.exchange is not None:
            scores += [self.exchange.drop, self.exchange.grow]
        return any(score.needs_gradient for score in scores)


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
        every: optimizer steps between two updates. These three are required, except by methods that act once, when
            the Pruner is made (`fggp.OneShot`), to which they do not apply.
        method: what to prune at an update: a `fggp.Method`, a `fggp.OneShot`, or the lower-case name of a built-in one.
        schedule: how sparsity grows from ``begin`` to ``end``: maps progress in [0, 1] to the share still to go.
        init_sparsity: the sparsity to start from, in [0, 1); by default 0, or ``sparsity`` itself for methods of
            constant sparsity (RigL, SET).
        init: where the zeros to start from lie: ``"erk"`` or ``"uniform"`` draw them at random with such layer
            densities; a mapping from weight names to bool tensors (True = kept) gives them; ``"keep"`` keeps those
            the weights have. The last two set ``init_sparsity`` themselves.
        scope: rank all weights together (``"global"``) or within each layer, every layer then losing the same
            share of its weights (``"layer"``).
        include: prune only these weights; see `fggp.weights.find.find_prunable`.
        exclude: leave these weights alone; see `fggp.weights.find.find_prunable`.
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
        # Everything is checked before anything is touched.
        self.method = resolve(method)
        self.schedule = _schedule(self.method, sparsity, begin, end, every, schedule, init_sparsity, init)
        if scope not in ("global", "layer"):
            raise ValueError(f"scope={scope!r} must be 'global' or 'layer'")
        if isinstance(self.method, OneShot) and scope != "global":
            raise ValueError(f"scope={scope!r} does not apply to method={self.method.name!r}: leave it out")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed={seed!r} must be an int")
        weights = find_prunable(model, include, exclude)
        check_optimizer(weights, optimizer)
        processes = Processes.of(model, weights)
        if isinstance(self.method, OneShot):
            if processes.sharded:
                raise ValueError(
                    f"method={self.method.name!r} needs whole weights: make a Pruner with it before the model is "
                    f"sharded, and after it another one with init=<masks of the first> and a method of updates"
                )
            masks = self.method.masks(model, weights, sparsity, seed)
        else:
            masks = starting_masks(weights, init, self.schedule.init_sparsity, seed, processes)
        self._masks = Masks(weights, masks, processes)
        if isinstance(init, Mapping) or init == "keep":  # not with a OneShot: refused above
            own = self._own_sparsity(sparsity, init_sparsity)
            self.schedule = replace(self.schedule, init_sparsity=own)
        hooks = map(inspect.unwrap, optimizer._optimizer_step_pre_hooks.values())
        if any(isinstance(getattr(hook, "__self__", None), Pruner) for hook in hooks):
            warnings.warn("the optimizer has a Pruner already: call its remove() first", UserWarning, stacklevel=2)

        self._averages = _averages(self.method)
        self.scope, self.seed = scope, seed
        self.step = self.last_update = 0
        self._start = self._masks.counts
        self._overdue = self._warned = self._skipped = self._in_step = False
        self._chosen: tuple[list[Layer], Marks, bool] | None = None  # before a step; put in force after it
        self._model, self._optimizer = model, optimizer
        self._masks.apply(optimizer)
        self._hooks = [
            optimizer.register_step_pre_hook(outside_graphs(self._before_step)),
            optimizer.register_step_post_hook(outside_graphs(self._after_step)),
        ]
        # For closures, into which a compiled step is traced. Made once: one made at each step would recompile it.
        self._choose_after_closure = outside_graphs(self._choose)

    def _own_sparsity(self, sparsity: float, init_sparsity: float | None) -> float:
        """s_ini of masks that were given: what they have, or exactly ``sparsity`` where they have that already."""
        active, total = self._masks.active, self._masks.total
        if init_sparsity is not None and active != active_count(init_sparsity, total):
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
            for w, count in zip(self._masks.weights, self._masks.counts, strict=True)
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
        refuse_capture()
        self._chosen, self._in_step = None, True
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
            self._choose_after_closure()
            return loss

        return evaluate

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._skipped:
            return
        # An optimizer whose step calls its base class's fires the hooks twice: that is one step still.
        if self._in_step:
            self._in_step = False
            self.step += 1
            self._overdue = self._is_due(self.step) and self._chosen is None
        if self._chosen is not None:
            self._masks.change(optimizer, *self._chosen)
            self.last_update, self._chosen = self.step, None
        elif self._masks.active < self._masks.total:
            self._masks.apply(optimizer)

    def _is_due(self, step: int) -> bool:
        return self._overdue or self.schedule.is_update(step)

    @torch.no_grad()
    def _choose(self) -> None:
        """If an update is due at the step about to be made, choose the weights that are active after it."""
        step = self.step + 1
        if self._averages.kinds and (self._overdue or step <= self.schedule.last_update):
            self._averages.update(self._masks.weights, self._grad_scale)
        if not self._is_due(step):
            return
        plan = self._plan(step)
        obstacle = self._obstacle(plan)
        if obstacle is None:
            self._chosen = self._select(plan)
        elif not self._warned:
            self._warned = True
            message = f"the mask update due at step {step} is postponed: {obstacle} (this is said once)"
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _plan(self, step: int) -> _Plan:
        """What an update at this step does."""
        assert isinstance(self.method, Method)  # a OneShot has no updates
        active, target = self._masks.active, self.schedule.active_at(step, self._masks.total)
        if self.scope == "global":
            groups = [(slice(None), active, target)]
        else:
            counts = self._masks.counts
            targets = apportion(min(target, active), self._start, counts)
            groups = [(slice(i, i + 1), a, t) for i, (a, t) in enumerate(zip(counts, targets, strict=True))]
        progress = self.schedule.progress(step)
        chains = [
            (group, checked_chain(self.method, Update(step, active, active - target, progress, self.seed)))
            for group, active, target in groups
            if active > target
        ]
        exchange = self.method.exchange(Update(step, active, max(0, active - target), progress, self.seed))
        return _Plan(chains, exchange)

    def _obstacle(self, plan: _Plan) -> str | None:
        """Why an update cannot be made with the gradients there are, or None."""
        grads = [g for w in self._masks.weights if (g := local_gradient(w.parameter)) is not None]
        grads = [g if g.layout == torch.strided else g.coalesce().values() for g in grads]
        there, infinite = self._masks.processes.sum([len(grads), not passes.all_finite(grads)])
        if infinite:
            return "a gradient is not finite"
        if not there and plan.needs_gradient:
            return f"no weight has a gradient, and {self.method.name!r} ranks by it"
        return None

    def _select(self, plan: _Plan) -> tuple[list[Layer], Marks, bool]:
        """What was read, the weights that are active after an update, and whether some of these were pruned before."""
        masks, processes = self._masks, self._masks.processes
        layers = flatten(masks.weights, True, self._grad_scale, processes.owned, self._averages)
        active = masks.flat(layers)
        for group, chain in plan.chains:
            pruned = run_chain(layers[group], active[group], chain, processes)
            active[group] = [p.logical_xor_(a) for p, a in zip(pruned, active[group], strict=True)]
        if plan.exchange is not None:
            active = run_exchange(layers, active, plan.exchange, processes)
        masks.check_same(active)
        return layers, active, plan.exchange is not None

    @property
    def _grad_scale(self) -> float:
        """What stored gradients are to be divided by: a GradScaler leaves it to optimizers that can to unscale."""
        scale = getattr(self._optimizer, "grad_scale", None)
        return 1.0 if scale is None else float(scale)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Masks (one bit a weight), step and settings: plain values and CPU tensors, for ``weights_only=True``.

        Masks of sharded weights are DTensors, sharded as these are, for ``torch.distributed.checkpoint``.
        """
        return {
            "version": 1,
            "step": self.step,
            "last_update": self.last_update,
            "overdue": self._overdue,
            "schedule": pruner_state.schedule_state(self.schedule),
            "method": pruner_state.method_state(self.method),
            "scope": self.scope,
            "seed": self.seed,
            "start": list(self._start),
            "shapes": pruner_state.shapes(self._masks.weights),
            "masks": {name: pruner_state.mask_state(m) for name, m in self.masks.items()},
            "averages": self._averages.state_dict(self._masks.weights),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state: its masks, step and settings, which replace this pruner's own.

        Make model, optimizer and Pruner, then load their states, in any order. (A Pruner with a sparse start zeroes
        weights when it is made: made after the model's state is loaded, it would take some for good.) Weights and
        optimizer state are zero where pruned when this returns.

        Raises:
            ValueError: the state is damaged, of another model, or of a custom method or schedule that this pruner
                was not made with. The pruner is then as it was.
        """
        self._masks.follow(self._optimizer)
        try:
            restored, masks = self._restore(state)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"state is damaged, or not the state_dict of a Pruner: {error!r}") from error
        vars(self).update(restored, _chosen=None)
        self._masks.replace(masks)
        self._masks.apply(self._optimizer)

    def _restore(self, state: Mapping[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
        """What `load_state_dict` sets, all of it checked: attributes by name, and the masks."""
        if state["version"] != 1:
            raise ValueError(f"state has version {state['version']!r}; this fggp reads version 1")
        weights = self._masks.weights
        pruner_state.check_shapes(state["shapes"], weights)
        restored = {
            "method": pruner_state.restore_method(state["method"], self.method),
            "schedule": pruner_state.restore_schedule(state["schedule"], self.schedule),
            "scope": state["scope"],
            "seed": int(state["seed"]),
            "step": int(state["step"]),
            "last_update": int(state["last_update"]),
            "_overdue": bool(state["overdue"]),
            "_start": [int(n) for n in state["start"]],
        }
        kinds = _averages(restored["method"]).kinds
        restored["_averages"] = Averages.restored(kinds, state.get("averages", {}), weights)  # older states have none
        if restored["scope"] not in ("global", "layer") or len(restored["_start"]) != len(weights):
            raise ValueError(f"state is damaged: scope={state['scope']!r}, start={state['start']!r}")
        return restored, [pruner_state.restore_mask(state["masks"][w.name], w) for w in weights]

    def __repr__(self) -> str:
        s = self.schedule
        rows = [
            (w.name, "×".join(map(str, w.parameter.shape)), w.parameter.numel(), kept)
            for w, kept in zip(self._masks.weights, self._masks.counts, strict=True)
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


def _averages(method: Method | OneShot) -> Averages:
    return Averages(method.averages() if isinstance(method, Method) else ())


def _schedule(
    method: Method | OneShot,
    sparsity: float,
    begin: int | None,
    end: int | None,
    every: int | None,
    curve: Curve,
    init_sparsity: float | None,
    init: Init,
) -> Schedule:
    """The schedule for a method, all numbers checked."""
    steps = {"begin": begin, "end": end, "every": every}
    if isinstance(method, OneShot):
        given = [name for name, value in {**steps, "init_sparsity": init_sparsity}.items() if value is not None]
        if given or init != "erk":
            raise ValueError(
                f"{(given or ['init'])[0]} does not apply to method={method.name!r}, which acts once, when the Pruner "
                f"is made: leave it out"
            )
        return Schedule(sparsity, begin=0, end=1, every=1, init_sparsity=sparsity, curve=curve, last=0)
    missing = [name for name, value in steps.items() if value is None]
    if missing or begin is None or end is None or every is None:
        raise TypeError(f"method={method.name!r} needs {', '.join(missing)}: numbers of optimizer steps")
    if init_sparsity is None:
        init_sparsity = sparsity if method.constant else 0.0
    schedule = Schedule(sparsity, begin, end, every, init_sparsity, curve)
    return replace(schedule, last=method.last_update(end))
