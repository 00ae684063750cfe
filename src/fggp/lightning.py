"""Prunes while Lightning trains: ``Trainer(callbacks=[Pruning(sparsity=0.9)])``."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

import fggp
from fggp.masks.starts import Init
from fggp.methods import FGGP, GraNet, Method, OneShot, resolve
from fggp.schedule import Curve, cubic
from fggp.training_shares import UPDATES, Steps, check_shares, steps_of_shares
from fggp.update import Scope
from fggp.weights.find import Filter

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

    _BASES = (Callback,)
else:

    def _callback_classes() -> tuple[type, ...]:
        """The Callback of each installed Lightning: it comes as two packages, whose trainers know only their own."""
        packages = [p for p in ("lightning", "pytorch_lightning") if importlib.util.find_spec(p)]
        if not packages:
            raise ImportError("fggp.lightning needs Lightning: pip install 'fggp[lightning]'")
        modules = ["lightning.pytorch" if p == "lightning" else p for p in packages]
        return tuple(importlib.import_module(m).Callback for m in modules)

    class Callback(*_callback_classes()):
        """A callback for the trainers of all installed Lightning packages."""


_log = logging.getLogger(__name__)


class Pruning(Callback):
    """Prunes the model while ``trainer.fit`` trains it.

    The `fggp.Pruner` is made when training starts, for the optimizers of ``configure_optimizers``. When to prune is
    given as shares of training, which the trainer's ``max_epochs``, ``max_steps`` and gradient accumulation turn into
    optimizer steps. The pruner's state is saved in the trainer's checkpoints. With ``fit(ckpt_path=…)`` it goes on
    from there; a checkpoint without that state is pruned over the rest of training. A second ``fit`` goes on with the
    masks of the first.

    Averaged copies that other callbacks keep (``WeightAveraging``, ``EMAWeightAveraging``,
    ``StochasticWeightAveraging``) get the same zeros. The present sparsity is logged as ``sparsity``. Once the final
    sparsity is reached, ``ModelCheckpoint`` and ``EarlyStopping`` start anew: the best model is the best of those with
    the final sparsity. Checkpoints saved earlier are left where they are.

    Args:
        sparsity: the final share of zeros among the prunable weights, or shares by name pattern; see `fggp.Pruner`.
        begin: the share of training from which the schedule counts, in [0, 1).
        end: the share of training from which ``sparsity`` holds, in (begin, 1]. By default half, as in the literature:
            it prunes until half of training and then trains the remaining weights at lower learning rates.
        every: optimizer steps between two mask updates; by default a 31st of the steps from ``begin`` to ``end``.
        method: see `fggp.Pruner`. ``"granet"`` gets its ``total_steps`` from the trainer.
        schedule: see `fggp.Pruner`.
        init_sparsity: see `fggp.Pruner`.
        init: see `fggp.Pruner`.
        scope: see `fggp.Pruner`.
        floor: see `fggp.Pruner`.
        include: see `fggp.Pruner`. Names are those of the LightningModule's parameters.
        exclude: see `fggp.Pruner`.
        seed: see `fggp.Pruner`.

    Raises:
        ValueError, TypeError: an argument is wrong. What `fggp.Pruner` refuses is raised when training starts; so is
            training without a known length.
    """

    def __init__(
        self,
        sparsity: float | Mapping[str, float],
        *,
        begin: float = 0.0,
        end: float = 0.5,
        every: int | None = None,
        method: Method | OneShot | str = FGGP(),  # noqa: B008 (frozen)
        schedule: Curve = cubic,
        init_sparsity: float | None = None,
        init: Init = "erk",
        scope: Scope = "global",
        floor: int | float | None = None,
        include: Filter | Sequence[Filter] | None = None,
        exclude: Filter | Sequence[Filter] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_shares(begin, end, every)
        self._begin, self._end, self._every = begin, end, every
        self._method = method
        self._arguments: dict[str, Any] = {
            "sparsity": sparsity,
            "schedule": schedule,
            "init_sparsity": init_sparsity,
            "init": init,
            "scope": scope,
            "floor": floor,
            "include": include,
            "exclude": exclude,
            "seed": seed,
        }
        self._pruner: fggp.Pruner | None = None
        self._module: LightningModule | None = None  # whose weights the pruner prunes
        self._loaded: dict[str, Any] | None = None  # a checkpoint's state, until the pruner is made
        self._fitting = self._ready = self._finished = False
        self._followed: list[nn.Module] = []
        self._superseded: list[str] = []  # best checkpoints from before the final sparsity
        self._max_epochs = -1
        self._trainable = 0  # the trainable parameters that the optimizers hold
        self._clock = _Clock()

    @property
    def pruner(self) -> fggp.Pruner:
        """The Pruner.

        Raises:
            RuntimeError: training has not started in this process.
        """
        if self._pruner is None:
            raise RuntimeError("the Pruner is made when trainer.fit starts to train, in each process that trains")
        return self._pruner

    # Before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self._fitting = stage == "fit"
        if self._fitting:
            self._loaded, self._ready, self._clock = None, False, _Clock()
            # Here, because StochasticWeightAveraging later adds an epoch in which no optimizer steps.
            self._max_epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        elif self._module is not pl_module:
            self._loaded = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the Pruner, or bind it to the new optimizers, or restore it; and fit its schedule into this training.

        Not before: only now the data loader and so the length of training are known, and weights and optimizers have
        what a checkpoint holds. Loading may have called ``optimizer.step()`` to have the optimizers make their states.

        Raises:
            ValueError, TypeError: training has no known length, or `fggp.Pruner` refuses an argument.
        """
        clock = self._clock
        clock.set(trainer, pl_module, self._max_epochs)
        if self._pruner is not None and self._module is not pl_module:
            self._pruner.remove()
            self._pruner = None
        if self._pruner is None:
            clock.start(trainer, 0)
            if self._loaded is None:
                self._pruner = self._make(trainer)
            else:
                self._pruner = self._make_to_load(trainer, pl_module, self._loaded["pruner"]["masks"])
        else:
            self._pruner.attach(_optimizers(trainer))
        is_new = self._module is not pl_module and self._loaded is None
        self._module, self._ready = pl_module, True
        if self._loaded is not None:
            self._restore(self._loaded)
        if not is_new:
            self._fit_into(trainer)
        elif not _is_one_shot(self._pruner.method):
            clock.aim(self._pruner.schedule)
        self._finished = self._pruner.finished
        self._trainable = _trainable(trainer)
        self._followed = []
        self._follow_copies(trainer, pl_module)

    def _make(self, trainer: Trainer) -> fggp.Pruner:
        length = self._clock.left
        method = GraNet(total_steps=length) if self._method == GraNet.name else self._method
        steps = steps_of_shares(length, self._begin, self._end, self._every)
        when: dict[str, Any] = {} if _is_one_shot(method) else steps._asdict()
        return fggp.Pruner(_model(trainer), _optimizers(trainer), method=method, **when, **self._arguments)

    def _make_to_load(self, trainer: Trainer, pl_module: LightningModule, masks: Container[str]) -> fggp.Pruner:
        """A Pruner that has not changed the weights, for a state that has the masks and the schedule."""
        method = GraNet(total_steps=1) if self._method == GraNet.name else self._method
        dense: dict[str, Any] = {"begin": 0, "end": 1, "every": 1, "init": "erk", "init_sparsity": 0.0}
        first = FGGP() if _is_one_shot(method) else method
        # A BaseFinetuning callback freezes its layers anew, whether or not they had been thawed.
        frozen = [p for name, p in pl_module.named_parameters() if name in masks and not p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        pruner = fggp.Pruner(_model(trainer), _optimizers(trainer), method=first, **{**self._arguments, **dense})
        for parameter in frozen:
            parameter.requires_grad_(False)
        pruner.method = resolve(method)
        return pruner

    def _fit_into(self, trainer: Trainer) -> None:
        """Move the end of pruning that began in another training, if this one would end before it."""
        pruner, clock = self.pruner, self._clock
        goes_on = clock.start(trainer, pruner.step) and self._loaded is not None
        if _is_one_shot(pruner.method):
            return
        missed = pruner.schedule.end <= pruner.step and not pruner.finished
        if missed or pruner.schedule.end > pruner.step + clock.left:
            last, before = pruner.step + clock.left, pruner.schedule.end
            end = pruner.step + steps_of_shares(clock.left, 0.0, self._end, None).end
            self._retime(min(pruner.schedule.begin, end - 1), end)
            if missed:
                what = f"weights have become trainable after pruning ended, at optimizer step {before}"
            else:
                what = (
                    f"pruning was to end at optimizer step {before}, but this training goes from step {pruner.step} to "
                    f"{last}"
                )
            self._warn(trainer, f"{what}: it now ends at step {end}")
        elif goes_on:
            return
        clock.aim(pruner.schedule)

    # While training

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take in weights that have been thawed, by a ``BaseFinetuning`` callback, say."""
        trainable = _trainable(trainer)
        if trainable > self._trainable:
            self.pruner.attach(_optimizers(trainer))
            self._fit_into(trainer)
            self._finished = self.pruner.finished
        self._trainable = trainable

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find copies that callbacks have made since."""
        self._follow_copies(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the sparsity, and notice when pruning is done, or when steps come slower or faster than expected."""
        pruner = self.pruner
        stepped = pruner.step != self._clock.step
        self._clock.read(trainer, pruner.step)
        if stepped and pruner.step < pruner.schedule.end:
            self._keep_pace()
        if not self._finished and pruner.finished:
            self._finished = True
            self._restart_best(trainer)
        if not trainer.barebones:
            pl_module.log("sparsity", pruner.sparsity, on_step=True, on_epoch=False)

    def _keep_pace(self) -> None:
        """Move the end of pruning if optimizer steps come slower or faster than thought.

        With manual optimization the trainer knows batches, and only the training shows how many make a step.
        """
        pruner, clock = self.pruner, self._clock
        if not _is_one_shot(pruner.method) and clock.has_other_pace(patience=pruner.schedule.every):
            begin, end = clock.begin_and_end()
            self._retime(begin if pruner.step < pruner.schedule.begin else pruner.schedule.begin, end)
            _log.info("the pruner makes %.3g steps a batch: pruning ends at its step %d", clock.pace, end)

    def _retime(self, begin: int, end: int) -> None:
        every = max(1, (end - begin) // UPDATES) if self._every is None else self._every
        self._reschedule(Steps(begin, end, every))

    def _reschedule(self, steps: Steps) -> None:
        if self._method == GraNet.name:
            self.pruner.method = GraNet(total_steps=self.pruner.step + self._clock.left)
        self.pruner.reschedule(**steps._asdict())

    def _follow_copies(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in _callbacks(trainer):
            for copy in _copies_in(callback, pl_module):
                if not any(copy is followed for followed in self._followed):
                    self.pruner.follow(copy)
                    self._followed.append(copy)

    def _restart_best(self, trainer: Trainer) -> None:
        """Compare from now on only models of the final sparsity with one another."""
        for checkpoint in _best_seekers(trainer):
            if checkpoint.best_model_path:
                self._superseded.append(checkpoint.best_model_path)
                checkpoint.best_k_models = {}
                checkpoint.kth_best_model_path = checkpoint.best_model_path = ""
                checkpoint.best_model_score = None
                _log.info("the final sparsity is reached: from now on the best %s is sought", checkpoint.monitor)
        for stopping in _of_kind("EarlyStopping", trainer):
            stopping.best_score = torch.tensor(math.inf if stopping.mode == "min" else -math.inf)
            stopping.wait_count = 0

    # After training

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is not as it should be: the final sparsity was not reached, or no checkpoint has it."""
        if not self._ready:
            return  # nothing was trained
        pruner = self.pruner
        if not pruner.finished:
            paths = [path for c in trainer.checkpoint_callbacks if (path := getattr(c, "best_model_path", ""))]
            self._warn(
                trainer,
                f"pruning has not ended: sparsity is {pruner.sparsity:.2%} of {pruner.schedule.sparsity:.2%}. Training "
                f"ended after optimizer step {pruner.step}, pruning ends at step {pruner.schedule.end}. Train on, or "
                f"call finish() of this callback's pruner to prune the rest now"
                + (f". No checkpoint has the final sparsity: {', '.join(paths)}" if paths else ""),
            )
            return
        for checkpoint in _best_seekers(trainer):
            if self._superseded and not checkpoint.best_model_path:
                self._warn(
                    trainer,
                    f"ModelCheckpoint(monitor={checkpoint.monitor!r}) has saved nothing since the final sparsity was "
                    f"reached: the model in memory has it, but these have not: {', '.join(self._superseded)}",
                )

    @staticmethod
    def _warn(trainer: Trainer, message: str) -> None:
        if trainer.is_global_zero:
            warnings.warn(message, UserWarning, stacklevel=3)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The pruner's state and what it had reached; empty before the pruner is made."""
        if self._loaded is not None and not self._ready:
            return self._loaded
        if self._pruner is None:
            return {}
        pruner = self._pruner
        return {
            "pruner": _gathered(pruner.state_dict()),
            "clock": self._clock.state_dict(),
            "finished": pruner.finished,
            "sparsity": pruner.sparsity,
            "target": float(pruner.schedule.sparsity),
            "step": pruner.step,
            "end": pruner.schedule.end,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's state. With ``validate``, ``test`` and ``predict`` the masks follow the weights."""
        if not self._fitting:
            if not state_dict["finished"]:
                reached, target = state_dict["sparsity"], state_dict["target"]
                warnings.warn(
                    f"this checkpoint is from before the end of pruning: sparsity is {reached:.2%} of {target:.2%}, "
                    f"at optimizer step {state_dict['step']} of {state_dict['end']}",
                    UserWarning,
                    stacklevel=2,
                )
            if self._pruner is not None and self._module is not None:
                self._pruner.load_state_dict(state_dict["pruner"])
        elif self._ready:
            self._restore(state_dict)
        else:
            self._loaded = state_dict

    def _restore(self, state: dict[str, Any]) -> None:
        self.pruner.load_state_dict(state["pruner"])
        self._clock.load_state_dict(state["clock"])
        self._finished = self.pruner.finished
        self._loaded = state


class _Clock:
    """Tells how much of training is done, in ticks, and how many of the pruner's steps a tick makes.

    A tick is an optimizer step. With manual optimization, whose steps Lightning cannot foresee, it is a batch; or, if
    ``max_steps`` limits training, a step of any of the optimizers.
    """

    def __init__(self) -> None:
        self.total = 0  # the ticks of the training
        self.pace = 1.0  # the pruner's steps per tick, as far as is known
        self._in_batches = False  # whether a tick is a batch
        self.step = self.tick = 0  # now
        self._origin = (0, 0)  # where the pace is measured from: a step and a tick
        self._begin_tick = self._end_tick = 0.0  # when pruning is to begin and to end

    def set(self, trainer: Trainer, pl_module: LightningModule, max_epochs: int) -> None:
        """Find out how long a training is.

        Raises:
            ValueError: the training has no known length.
        """
        by_steps = math.inf if trainer.max_steps == -1 else trainer.max_steps
        by_epochs = math.inf
        manual = not pl_module.automatic_optimization
        if max_epochs != -1:
            trainer.estimated_stepping_batches  # noqa: B018 (makes the data loader, whose length is needed)
            batches = trainer.num_training_batches
            if batches != math.inf:
                per_tick = [1 if manual else _accumulation(trainer, epoch) for epoch in range(max_epochs)]
                by_epochs = sum(math.ceil(batches / n) for n in per_tick)
        total = min(by_steps, by_epochs)
        if total == math.inf:
            raise ValueError(
                f"Pruning's begin and end are shares of training, but this training has no known length: "
                f"max_steps={trainer.max_steps}, max_epochs={max_epochs}. Set Trainer(max_steps=…); or max_epochs, and "
                f"limit_train_batches=<int> if the data loader has no length"
            )
        self.total, self._in_batches = int(total), manual and by_epochs <= by_steps

    @property
    def left(self) -> int:
        """The pruner's steps that are left, at the present pace; at least 1."""
        return max(1, round((self.total - self.tick) * self.pace))

    def read(self, trainer: Trainer, step: int) -> None:
        """Take the time: the trainer's ticks, and the pruner's step."""
        self.tick = trainer.fit_loop.total_batch_idx + 1 if self._in_batches else trainer.global_step
        self.step = step

    def start(self, trainer: Trainer, step: int) -> bool:
        """Take the time when training starts. Return whether it goes on where this clock left it.

        If it does not, the pace is measured from here.
        """
        before = (self.step, self.tick)
        self.read(trainer, step)
        goes_on = (self.step, self.tick) == before
        if not goes_on:
            self._origin = (self.step, self.tick)
        return goes_on

    def aim(self, schedule: fggp.Schedule) -> None:
        """Note at which ticks pruning is to begin and to end."""
        self._begin_tick = self.tick + (schedule.begin - self.step) / self.pace
        self._end_tick = self.tick + (schedule.end - self.step) / self.pace

    def has_other_pace(self, patience: int) -> bool:
        """Measure the pace, and whether it is another one than thought.

        Args:
            patience: how many steps would have been made by now. There is no verdict before them: a GradScaler skips
                the first steps until it has found its scale.
        """
        steps, ticks = self.step - self._origin[0], self.tick - self._origin[1]
        if ticks < 1 or ticks * self.pace < patience or abs(steps / ticks / self.pace - 1) <= 0.1:
            return False
        self.pace = steps / ticks
        return True

    def begin_and_end(self) -> tuple[int, int]:
        """The steps at which pruning begins and ends at the present pace; the end is at least the next step."""
        begin = self.step + max(0, round((self._begin_tick - self.tick) * self.pace))
        return begin, max(begin + 1, self.step + round((self._end_tick - self.tick) * self.pace))

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on."""
        aims = [self._begin_tick, self._end_tick]
        return {"pace": self.pace, "origin": [*self._origin], "step": self.step, "tick": self.tick, "aims": aims}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.pace = float(state["pace"])
        self._origin = (int(state["origin"][0]), int(state["origin"][1]))
        self.step, self.tick = int(state["step"]), int(state["tick"])
        self._begin_tick, self._end_tick = map(float, state["aims"])


def _accumulation(trainer: Trainer, epoch: int) -> int:
    """The batches per optimizer step in an epoch."""
    for scheduler in _of_kind("GradientAccumulationScheduler", trainer):
        scheduled: int = scheduler.get_accumulate_grad_batches(epoch)
        return scheduled
    return trainer.accumulate_grad_batches


def _callbacks(trainer: Trainer) -> list[Any]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    return callbacks


def _of_kind(name: str, trainer: Trainer) -> list[Any]:
    """The callbacks of a class, by its name: each of the two packages has its own class of this name."""
    return [c for c in _callbacks(trainer) if any(kind.__name__ == name for kind in type(c).__mro__)]


def _copies_in(callback: Any, model: nn.Module) -> Iterator[nn.Module]:
    """The copies of a model that a callback keeps, whichever callback: as they are or in an AveragedModel."""
    for value in vars(callback).values():
        if isinstance(value, nn.Module):
            inner = getattr(value, "module", None)
            copy = inner if isinstance(inner, type(model)) else value
            if isinstance(copy, type(model)) and copy is not model:
                yield copy


def _best_seekers(trainer: Trainer) -> list[Any]:
    """The ModelCheckpoints that look for the best model."""
    return [c for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None) is not None]


def _model(trainer: Trainer) -> nn.Module:
    """The module that is trained, wrapped for data parallelism if it is."""
    model: nn.Module | None = trainer.model
    assert model is not None
    return model


def _trainable(trainer: Trainer) -> int:
    """How many trainable parameters the optimizers hold."""
    return sum(p.requires_grad for each in trainer.optimizers for group in each.param_groups for p in group["params"])


def _optimizers(trainer: Trainer) -> Any:
    return trainer.optimizers[0] if len(trainer.optimizers) == 1 else trainer.optimizers


def _is_one_shot(method: Any) -> bool:
    return isinstance(method if isinstance(method, (Method, OneShot)) else resolve(method), OneShot)


def _gathered(state: Any) -> Any:
    """A state with whole tensors instead of DTensors: Lightning saves callbacks' states from the first process only."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, dict):
        return {key: _gathered(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_gathered(value) for value in state]
    return state
