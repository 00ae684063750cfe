"""Binds a pruning method to a model and its optimizer."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fggp import registry
from fggp.acceleration.measured import Measured
from fggp.caller import warn_caller
from fggp.graph_breaks import outside_graphs, refuse_capture
from fggp.masks.masks import Masks
from fggp.masks.optimizer_state import check_state_format
from fggp.masks.starts import Init, check_granularity, starting_masks, tensors_of_zeros
from fggp.methods import FGGP, Method, OneShot, resolve
from fggp.model.copies import parameters_like, places_like
from fggp.model.coverage import coverage
from fggp.model.detached import check_attached
from fggp.model.find import Filter, find_prunable
from fggp.model.kinds import known_parameters
from fggp.pruner import health
from fggp.pruner.arguments import check_one_shot, check_scope, check_seed, schedule_for
from fggp.pruner.health import Finding, Health
from fggp.pruner.state import PrunerState
from fggp.pruner.steps import Steps
from fggp.pruner.table import layer_table
from fggp.pruner.targets import Targets, split_into_budgets
from fggp.pruner.update import Choice, Scope, choose, find_obstacle, plan_update
from fggp.registry import Record
from fggp.schedule import Curve, Schedule, cubic
from fggp.selection.rows import keep_rows_of_masks
from fggp.text import listing
from fggp.weights.averages import Averages
from fggp.weights.dtensor import local
from fggp.weights.gradients import LastGradients
from fggp.weights.granularity import Granularity, divide
from fggp.weights.optimizers import Optimizers, check_held
from fggp.weights.processes import Processes
from fggp.weights.prunable import Prunable

if TYPE_CHECKING:
    from fggp.acceleration.acceleration import Acceleration

Optimizer = torch.optim.Optimizer

LOOK_EVERY = 100
"""After the last update, the steps from one look at the model to the next."""


class Pruner:
    """Prunes a model while an unchanged training loop trains it.

    The pruner acts inside ``optimizer.step()``, through the optimizer's own hooks. Step t is the t-th call since the
    pruner was made, counting from 1. An update reads weights and gradients right before the optimizer changes the
    weights, and chooses which to prune. Whenever ``optimizer.step()`` returns, pruned weights are exactly zero, and
    so are their elements of the optimizer's state.

    A call that a ``GradScaler`` skips is not a step, nor is one with which torch.distributed.checkpoint only makes
    optimizer state. An update is postponed if a gradient is not finite, or if its method needs gradients and no weight
    has one. It then happens at the next step where neither is the case, with that step's sparsity; the first
    postponement warns. A weight that the batch left without a gradient is ranked by the last gradient that it had.

    Args:
        model: the model; wrapped (DDP, ``torch.compile``) or not. Its state-dict keys never change.
        optimizer: an optimizer with PyTorch's step hooks that holds all weights to be pruned; or a wrapper of one
            (SAM, Lookahead, Accelerate's); or several optimizers, in the order in which they step, which share one
            budget: a step is complete when the last one steps and each has stepped.
        sparsity: the final share of zeros among the prunable weights, in [init_sparsity, 1); their number is exact.
            A mapping gives targets by pattern of weight names, of which the first that matches counts:
            ``{"features.0*": 0.5, "*": 0.95}``. Each target's number is exact.
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
        floor: what every layer keeps at least: a number of weights (int) or a share of its weights (float). The total
            stays exact: other layers lose more.
        granularity: what is pruned as one: blocks of input channels (`fggp.Blocks`) or whole rows (`fggp.Rows`), of
            which ``sparsity``, ``init_sparsity`` and ``floor`` are then shares and numbers. `fggp.NM` prunes single
            weights to a pattern of at most N in M. By default single weights, without a pattern.
        include: prune only these weights; see `fggp.model.find.find_prunable`.
        exclude: leave these weights alone; see `fggp.model.find.find_prunable`.
        seed: the seed of all random choices. The global generators are never used.

    Attributes:
        method: the method in use.
        granularity: what is pruned as one; None: single weights.
        step: optimizer steps counted so far.
        last_update: the step of the latest update, 0 before the first.
        coverage: how much of the model can be pruned, and what is left out and why.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Model and optimizer are then unchanged.

    Source: Zhu, Bezek & Goksel, "Fixed-Rate Gradient-First Gradual Pruning", 2024, arXiv 2411.05500.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        sparsity: float | Mapping[str, float],
        *,
        begin: int | None = None,
        end: int | None = None,
        every: int | None = None,
        method: Method | OneShot | str = FGGP(),  # noqa: B008 (frozen)
        schedule: Curve = cubic,
        init_sparsity: float | None = None,
        init: Init = "erk",
        scope: Scope = "global",
        floor: float | int | None = None,
        granularity: Granularity | None = None,
        include: Filter | Sequence[Filter] | None = None,
        exclude: Filter | Sequence[Filter] | None = None,
        seed: int = 0,
    ) -> None:
        # Check everything before changing anything.
        self.method = resolve(method)
        goals = sparsity.values() if isinstance(sparsity, Mapping) else [sparsity]
        schedules = [schedule_for(self.method, s, begin, end, every, schedule, init_sparsity, init) for s in goals]
        check_scope(scope, self.method)
        check_seed(seed)
        weights = find_prunable(model, include, exclude)
        divide(weights, granularity)
        optimizers = _checked(optimizer, weights)
        targets = Targets.of(weights, split_into_budgets(weights, sparsity, schedules), floor)
        processes = Processes.of(model, weights)
        if isinstance(self.method, OneShot):
            check_one_shot(self.method, sparsity, floor, processes)
            chosen = self.method.masks(model, weights, targets.schedule.sparsity, seed)
            check_granularity(weights, chosen, f"method={self.method.name!r} returned a mask that")
            masks = keep_rows_of_masks(weights, chosen, processes)
        else:
            initial = [(b.layers, b.schedule.init_sparsity) for b in targets.budgets]
            masks = starting_masks(weights, init, initial, seed, processes)
        self._masks = Masks(weights, masks, processes)
        if isinstance(init, Mapping) or init == "keep":  # never with a OneShot: schedule_for refuses that
            targets = targets.starting_from(self._masks.units, self._masks.allowed, init_sparsity)
        if init == "keep" and (names := tensors_of_zeros(weights, processes)):
            warn_caller(
                f"init='keep' keeps all of {listing(names)}: so a layer starts, with nothing but zeros; none was pruned"
            )
        self._averages = Averages(self.method.averages() if isinstance(self.method, Method) else ())
        if any(_prunes(each, weights) for each in optimizers.all):
            warn_caller("the optimizer has a Pruner for these weights already: call its remove() first")

        self.scope, self.seed, self.granularity = scope, seed, granularity
        self.step = self.last_update = 0
        self._targets, self._include, self._exclude = targets, include, exclude
        self._initial_counts = self._masks.units
        self._overdue = self._warned = False
        self._averaged = 0  # the step whose gradients the averages have
        self._acceleration: Acceleration | None = None
        self._measured = Measured()  # by accelerations
        self._reads_gradients = True  # whether the method's last update did
        self._choice: Choice | None = None  # made before the optimizer's step, applied after it
        self._gradients = LastGradients()
        self._model, self._optimizers, self._steps = model, optimizers, Steps(optimizers.steppers)
        self.coverage = coverage(model, weights)
        self._health = Health(Record(self._masks.total, self.coverage.total))
        self._health.tell(
            health.of_coverage(self.coverage, self._include, self._exclude)
        )  # before anything is changed: a warning may be an error
        self._masks.apply(optimizers)
        self._hook()

    def _hook(self) -> None:
        """Put hooks on the optimizers, and make the weights known as this pruner's."""
        record = self._health.record
        record.optimizers, record.others = weakref.WeakSet(self._optimizers.all), []
        self._hooks = self._optimizers.hook(
            outside_graphs(self._before_step),
            outside_graphs(self._after_step),
            outside_graphs(self._after_wrapper),
        )
        # For closures, which a compiled step traces. Made once: a new function at each step would recompile the step.
        self._choose_after_closure = outside_graphs(self._choose_if_due)
        registry.attach(self, record)
        self._health.note_trainable(self._optimizers)
        self._note_masks()
        self._register()

    def _sync(self, optimizers: Optimizers | None = None) -> None:
        """Adapt to what has become of the model's weights since the last call; see `Masks.sync_with_model`."""
        if self._masks.sync_with_model(optimizers or self._optimizers):
            self._register()

    def _register(self) -> None:
        weights = self._masks.weights
        self._health.record.parameter_names = {id(w.parameter): w.name for w in weights}
        registry.register(self._health.record, [(*place[:2], w.name) for w in weights for place in w.owners])

    @property
    def schedule(self) -> Schedule:
        """The schedule in use; with several targets, the sparsity of all weights together."""
        return self._targets.schedule

    @property
    def sparsity(self) -> float:
        """The share of the prunable weights that is pruned now, whatever is pruned as one."""
        return 1 - self._masks.active / self._masks.total

    @property
    def finished(self) -> bool:
        """Whether the final sparsity is reached."""
        return self._targets.reached(self._masks.units)

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

    def check(self) -> list[Finding]:
        """What is not as it should be, as data; an empty list if nothing is.

        It looks at all weights and copies. Warnings say the same once, when it is noticed; this says it again.
        """
        return [
            *health.of_coverage(self.coverage, self._include, self._exclude),
            *self._health.of_training(),
            *health.of_model(self._masks, self._model, self._uncovered()),
            *health.of_weights(self._masks),
            *(health.of_strange_zeros(self._masks) if self.step == 0 else []),
            *health.of_layers(self._masks),
            *health.of_gradients(self._gradients),
            *self._health.of_copies(self._masks),
        ]

    # What a user may change

    def attach(self, optimizer: Optimizer | Sequence[Optimizer]) -> None:
        """Go on with other optimizers, in place of the present ones: in a new phase of training, say.

        Weights that have become trainable since the pruner was made, and that ``include`` and ``exclude`` allow, are
        taken in, unpruned. The present optimizer may be given again, after ``add_param_group``.

        Raises:
            ValueError, TypeError: as when a Pruner is made. Nothing is changed then.
        """
        check_attached(self._masks.weights, self._model)
        known = {w.name: w for w in self._masks.weights}
        found = {w.name: w for w in find_prunable(self._model, self._include, self._exclude)}
        order = [*dict.fromkeys(k.weight.name for k in known_parameters(self._model))]  # ranks ties
        weights = [{**found, **known}[name] for name in order if name in found or name in known]
        divide(weights, self.granularity)
        optimizers = _checked(optimizer, weights)
        targets = self._targets.for_weights(weights)
        self._sync(optimizers)
        if len(weights) > len(known):
            counts = dict(zip(known, self._initial_counts, strict=True))
            self._initial_counts = [counts.get(w.name, w.units) for w in weights]
            self._masks = self._masks.with_more(weights, Processes.of(self._model, weights))
            self._targets = targets
            self.coverage = coverage(self._model, weights)
        filled = self._masks.revived()
        if filled and not self._health.record.others:  # an optimizer that was a stranger fills them: that is known
            warn_caller(f"attach zeroes them again: {registry.filled_again(filled)}", RuntimeWarning)
        self._unhook()
        self._optimizers, self._steps, self._choice = optimizers, Steps(optimizers.steppers), None
        self._apply_everywhere()
        self._hook()
        if self.step >= self.schedule.end and (shortfall := self._health.record.news()) is not None:
            warn_caller(shortfall, RuntimeWarning)

    def follow(self, copy: nn.Module) -> None:
        """Keep the zeros of a copy of the model equal to the model's: an average of its weights (EMA, SWA), say.

        The copy is zeroed where the model is pruned, now and whenever the masks change. The pruner does not keep it
        alive.

        Args:
            copy: a module with the model's weights, or one that holds such a module as ``module``.

        Raises:
            TypeError, ValueError: it is no copy of the model.
        """
        places = places_like(copy, self._masks.weights)
        self._masks.apply_to(parameters_like(copy, self._masks.weights))
        self._health.follow(copy)
        registry.register(self._health.record, places)

    def zero(self) -> None:
        """Zero all pruned weights, their optimizer state, and those of copies, now: they were filled on purpose."""
        self._sync()
        self._apply_everywhere()

    def reschedule(
        self,
        *,
        sparsity: float | Mapping[str, float] | None = None,
        begin: int | None = None,
        end: int | None = None,
        every: int | None = None,
    ) -> None:
        """Change the target or the timing in mid-run, as if the pruner had been made with it.

        Weights do not come back: where the new schedule wants fewer pruned than there are, it waits.

        Args:
            sparsity: the new final sparsity, or targets by pattern; by default the present one.
            begin: the step from which the schedule counts; by default as before.
            end: the step from which the final sparsity holds, after the present step; by default as before.
            every: optimizer steps between two updates; by default as before.

        Raises:
            ValueError, TypeError: an argument is wrong; more weights are pruned already; the end has passed; or the
                method is one-shot. Nothing is changed then.
        """
        if isinstance(self.method, OneShot):
            raise ValueError(f"method={self.method.name!r} has no schedule: it acts once, when the Pruner is made")
        last = None if end is None else self.method.last_update(end)
        targets = self._targets.changed(
            self._masks.weights, self._masks.units, sparsity, begin=begin, end=end, every=every, last=last
        )
        if targets.schedule.end <= self.step:
            raise ValueError(
                f"end={targets.schedule.end} must be greater than {self.step}, the present step: give end="
            )
        self._aim_at(targets)

    def finish(self) -> None:
        """Reach the final sparsity now, with one update outside a step; the schedule ends here.

        For training that stops early. The update ranks by the gradients that the weights have, or last had, and by
        magnitude where there are none. Some training afterwards lets the rest recover.
        """
        if self.finished or isinstance(self.method, OneShot):
            return
        step = max(self.step, 1)
        targets = self._targets.ending_at(step)
        self._sync()
        self._choose(step, targets, at_once=True)
        self._apply_choice()
        self._overdue = False
        self._gradients.release()
        self._aim_at(targets)

    def _aim_at(self, targets: Targets) -> None:
        self._targets = targets
        self._note_masks()
        self._register()

    def accelerate(self, below: float | None = None) -> Acceleration:
        """Let the model's layers skip their pruned weights in training, on the CPU.

        Convolutions and linear layers compute their output, and the gradients of their input and weight, for the active
        weights alone, layer by layer as soon as that is faster. Modules, parameters, their names and the training loop
        stay as they are. Gradients of pruned weights are then zero, which no method without regrowth reads. (A norm to
        which gradients are clipped does not contain them.) Numbers differ from dense ones by rounding.

        Args:
            below: the largest share of active weights at which a layer skips the others. By default it is measured
                for each layer when a shape of its input first comes, which takes as long as a few steps. A saved state
                has what was measured.

        Returns:
            What was done; its ``remove()``, or the pruner's, undoes it.

        Raises:
            ValueError: the method regrows weights, no layer can be accelerated, a weight is sharded, or ``below`` is
                not in [0, 1]. The model is then unchanged.
            KernelsMissingError: fggp was installed without its C++ kernels.
        """
        from fggp.acceleration.acceleration import Acceleration  # imports torch's compiler, which takes a second

        _refuse_regrowth(self.method)
        if below is not None and not 0 <= below <= 1:
            raise ValueError(f"below={below!r} must be in [0, 1]: a share of active weights")
        self._sync()
        if self._acceleration is not None:
            self._acceleration.remove()
        self._acceleration = Acceleration(self._model, self._masks, below, self._measured)
        return self._acceleration

    def remove(self) -> None:
        """Take the hooks off. Pruned weights are zero when this returns; `masks` stays readable."""
        if self._acceleration is not None:
            self._acceleration.remove()
        self._unhook()
        self._sync()
        self._apply_everywhere()
        self._health.tell(health.of_model(self._masks, self._model, self._uncovered()))
        shortfall = self._health.record.news()
        if shortfall is not None:
            warn_caller(shortfall)
        registry.settle(self._health.record)

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        registry.detach(self)

    # Around the optimizers' steps

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Choose before the optimizer changes the weights; with a closure, once that has computed the gradients."""
        refuse_capture()
        self._choice = None
        undisturbed = self._steps.begin(optimizer)
        self._sync()
        if undisturbed:
            self._health.check_unchanged(self._masks)
            if self.step == 0:
                self._health.tell(health.of_strange_zeros(self._masks))
        if self._is_due(self.step + 1):
            check_attached(self._masks.weights, self._model)
        if self._steps.skipped:
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
        updates_to_come = self._overdue or step <= self.schedule.last_update
        if updates_to_come and self._reads_gradients:
            self._gradients.observe(
                self._masks.weights, self._steps.gradient_scales(self._masks.weights), self._masks.processes
            )
        if not self._steps.completes:
            return
        # Hooks run twice in a step that calls its base class's step.
        if self._averages.kinds and updates_to_come and self._averaged < step:
            self._averages.update(self._masks.weights, self._steps.gradient_scales(self._masks.weights))
            self._averaged = step
        if self._is_due(step):
            self._choose(step, self._targets)

    def _choose(self, step: int, targets: Targets, at_once: bool = False) -> None:
        """Choose the weights that are active after an update at a step, or postpone it.

        Args:
            step: the step.
            targets: how many weights are active then.
            at_once: not to postpone it: gradients that are missing or not finite are done without.
        """
        assert isinstance(self.method, Method)  # the schedule of a OneShot has no updates
        gradients = self._gradients.read(
            self._masks.weights, self._steps.gradient_scales(self._masks.weights), self._masks.processes, at_once
        )
        plan = plan_update(
            self.method,
            targets,
            step=step,
            scope=self.scope,
            seed=self.seed,
            masks=self._masks,
            initial_counts=self._initial_counts,
            has_gradient=gradients.known,
        )
        obstacle = None if at_once else find_obstacle(plan, self.method, self._masks, gradients)
        if plan.rankings or plan.exchange is not None:
            self._reads_gradients = plan.needs_gradient
        if obstacle is None:
            if self._reads_gradients:  # else nobody looked at them since the update before
                self._gradients.count_update()
            self._choice = choose(plan, self._masks, gradients, self._averages)
        elif not self._warned:
            self._warned = True
            message = f"the mask update due at step {step} is postponed: {obstacle} (later postponements do not warn)"
            warn_caller(message, RuntimeWarning)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count the step when it is complete, apply the choice, and zero the pruned weights."""
        if self._steps.skipped:
            return
        if self._steps.end():
            self.step += 1
            self._overdue = self._is_due(self.step) and self._choice is None
            if self.step > self.schedule.last_update and self.step % LOOK_EVERY == 0:
                self._health.tell(health.of_model(self._masks, self._model, self._uncovered()))
        self._health.record.step = self.step
        self._health.record.idle = tuple(type(each).__name__ for each in self._steps.idle)
        if self._choice is not None:
            self._apply_choice()
        elif self._masks.active < self._masks.total:
            self._masks.apply(self._optimizers)
            self._health.note_written(self._masks)

    def _after_wrapper(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Zero what an optimizer that wraps another one wrote after the other's step."""
        self._masks.apply(self._optimizers)
        self._health.note_written(self._masks)

    def _apply_choice(self) -> None:
        """Put the chosen masks in force, and look what became of the model."""
        assert self._choice is not None
        self._masks.set_and_apply(self._optimizers, self._choice.layers, self._choice.active, self._choice.regrown)
        self.last_update, self._choice = self.step, None
        self._note_masks()
        self._health.zero_copies(self._masks)
        if self.step >= self.schedule.last_update or not self._reads_gradients:
            self._gradients.release()
        self._health.tell(health.of_layers(self._masks, self._health.told("dead-layer")))
        self._health.tell(health.of_gradients(self._gradients, self._health.told("no-gradient")))
        self._health.tell(health.of_model(self._masks, self._model, self._uncovered()))

    def _apply_everywhere(self) -> None:
        """Zero the pruned weights of the model and of its copies."""
        self._masks.apply(self._optimizers)
        self._health.zero_copies(self._masks)
        self._health.note_written(self._masks)

    def _note_masks(self) -> None:
        """Bring the record up to date, and remember the weights as they are."""
        record = self._health.record
        record.method, record.target, record.end = self.method.name, self.schedule.sparsity, self.schedule.end
        record.step, record.active, record.finished = self.step, self._masks.active, self.finished
        record.kept = {w.name: n for w, n in zip(self._masks.weights, self._masks.counts, strict=True)}
        record.prunable, record.parameters = self._masks.total, self.coverage.total
        if self._acceleration is not None:
            self._acceleration.set_masks(self._masks)
        registry.settle(record, left_to_say=not record.finished)
        self._health.note_written(self._masks)

    def _is_due(self, step: int) -> bool:
        return self._overdue or self.schedule.is_update(step)

    def _uncovered(self) -> list[str]:
        """The names of weights that could be pruned but were not trainable when the pruner was made."""
        if not self._health.has_new_trainable(self._optimizers):
            return []
        known = {w.name for w in self._masks.weights}
        try:
            found = find_prunable(self._model, self._include, self._exclude)
        except ValueError:  # what the filters named was frozen meanwhile
            return []
        return [w.name for w in found if w.name not in known]

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
            targets=self._targets,
            method=self.method,
            scope=self.scope,
            seed=self.seed,
            granularity=self.granularity,
            initial_counts=self._initial_counts,
            masks=self.masks,
            averages=self._averages,
            gradients=self._gradients,
            measured=self._measured,
        )
        return state.to_dict(self._masks.weights)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state: its masks, step and settings replace this pruner's own.

        Make model, optimizer and Pruner first, then load their states, in any order. (A Pruner with a sparse start
        zeroes weights when it is made. If it were made after the model's state is loaded, it would destroy some of
        that state.) Pruned weights and their optimizer state are zero when this returns.

        Raises:
            ValueError: the state is damaged, of another model or granularity, of a custom method or schedule that
                this pruner was not made with, or of a method that regrows while the model is accelerated. The pruner is
                then unchanged.
        """
        self._sync()
        restored = PrunerState.from_dict(state, self._masks.weights, self.method, self._targets, self.granularity)
        if self._acceleration is not None:
            _refuse_regrowth(restored.method)
        self._masks.set([local(mask) for mask in restored.masks.values()])
        asked = self._targets.sparsity
        self.method, self._targets = restored.method, restored.targets
        self.scope, self.seed = restored.scope, restored.seed
        self.step, self.last_update = restored.step, restored.last_update
        self._overdue, self._choice = restored.overdue, None
        self._initial_counts, self._averages = restored.initial_counts, restored.averages
        self._gradients, self._reads_gradients, self._averaged = restored.gradients, True, restored.step
        self._measured.load_state_dict(restored.measured.state_dict())
        self._masks.apply(self._optimizers)
        self._health.zero_copies(self._masks)
        self._note_masks()
        if asked != self._targets.sparsity:
            warn_caller(
                f"this Pruner was made with sparsity={asked!r}; the state that it goes on with has "
                f"{self._targets.sparsity!r}, which counts. To change it, call pruner.reschedule(sparsity=…)"
            )

    def __repr__(self) -> str:
        s = self.schedule
        units = "" if self.granularity is None else f", granularity={self.granularity}"
        head = (
            f"Pruner({self.method}, scope={self.scope!r}{units}): sparsity {self.sparsity:.2%} at step {self.step}, "
            f"from {s.init_sparsity:.2%} at {s.begin} to {s.sparsity:.2%} at {s.end}, every {s.every}"
        )
        findings = [str(f) for f in self.check() if f.kind not in ("unfinished", "never-stepped") or not self._hooks]
        return "\n".join([head, *layer_table(self._masks), *self.coverage.lines(), *findings])


def _refuse_regrowth(method: Method | OneShot) -> None:
    """Refuse a method that needs gradients which an accelerated model does not have."""
    if isinstance(method, Method) and method.regrows():
        raise ValueError(
            f"method={method.name!r} regrows weights, so it needs the gradients of pruned ones, which accelerate() "
            f"does not compute"
        )


def _checked(optimizer: Optimizer | Sequence[Optimizer], weights: Sequence[Prunable]) -> Optimizers:
    """The optimizers, if they hold the weights and their state can be zeroed."""
    optimizers = Optimizers(optimizer)
    check_held(weights, optimizers)
    for each in optimizers.all:
        check_state_format(each, [w.parameter for w in weights])
    return optimizers


def _prunes(optimizer: Optimizer, weights: Sequence[Prunable]) -> bool:
    """Whether a Pruner that is attached to an optimizer prunes some of these weights."""
    hooks = map(inspect.unwrap, getattr(optimizer, "_optimizer_step_pre_hooks", {}).values())
    pruners = [owner for hook in hooks if isinstance(owner := getattr(hook, "__self__", None), Pruner)]
    pruned = {id(w.parameter) for pruner in pruners for w in pruner._masks.weights}
    return any(id(w.parameter) in pruned for w in weights)
