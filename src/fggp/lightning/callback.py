"""The callback that prunes while Lightning trains."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

import fggp
from fggp.callbacks import PruningCallback
from fggp.lightning.clock import Clock
from fggp.lightning.copies import averages_within, copies_in_callbacks, stand_in
from fggp.lightning.trainers import callbacks, of_kind
from fggp.methods import FGGP, OneShot
from fggp.training_shares import UPDATES

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

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


class Pruning(PruningCallback, Callback):
    """Prunes the model while ``trainer.fit`` trains it.

    The `fggp.Pruner` is made when training starts, for the optimizers of ``configure_optimizers``. When to prune is
    given as shares of training, which the trainer's ``max_epochs``, ``max_steps`` and gradient accumulation turn into
    optimizer steps. The pruner's state is saved in the trainer's checkpoints. With ``fit(ckpt_path=…)`` it goes on
    from there; a checkpoint without that state is pruned over the rest of training. A second ``fit`` goes on with the
    masks of the first.

    Averages that other callbacks keep (``WeightAveraging``, ``EMAWeightAveraging``, ``StochasticWeightAveraging``) get
    the same zeros, and so does an ``AveragedModel`` or timm's ``ModelEma`` in the LightningModule. The present sparsity
    is logged as ``sparsity``. Once the final sparsity is reached, ``ModelCheckpoint`` and ``EarlyStopping`` start anew:
    the best model is the best of those with the final sparsity. Checkpoints saved earlier are left where they are.

    Args:
        sparsity: the final share of zeros among the prunable weights, or shares by name pattern; see `fggp.Pruner`.
        begin: the share of training from which the schedule counts, in [0, 1).
        end: the share of training from which ``sparsity`` holds, in (begin, 1]. By default half, as in the literature:
            it prunes until half of training and then trains the remaining weights at lower learning rates.
        every: optimizer steps between two mask updates; by default a 31st of the steps from ``begin`` to ``end``.
        method: see `fggp.Pruner`. ``"granet"`` gets its ``total_steps`` from the trainer.
        schedule, init_sparsity, init, scope, floor, include, exclude, seed: see `fggp.Pruner`. Names are those of the
            LightningModule's parameters.

    Raises:
        ValueError, TypeError: an argument is wrong. What `fggp.Pruner` refuses is raised when training starts; so is
            training without a known length.
    """

    _module: LightningModule | None = None  # whose weights the pruner prunes
    _present: LightningModule | None = None  # that the trainer fits, tests, … now
    _loaded: dict[str, Any] | None = None  # a checkpoint's state, until the pruner is made
    _fitting = _ready = _finished = False
    _followed: dict[nn.Module, nn.Module | None]  # copies, and what the pruner knows them as
    _superseded: Sequence[str] = ()  # best checkpoints from before the final sparsity
    _max_epochs = -1
    _trainable = 0  # the trainable parameters that the optimizers hold
    _clock: Clock

    # Before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self._fitting, self._present = stage == "fit", pl_module
        if self._fitting:
            self._loaded, self._ready, self._clock = None, False, Clock()
            # Here, because StochasticWeightAveraging later adds an epoch in which no optimizer steps.
            self._max_epochs = -1 if trainer.max_epochs is None else trainer.max_epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the Pruner, or bind it to the new optimizers, or restore it; and fit its schedule into this training.

        Not before: only now the data loader and so the length of training are known, and weights and optimizers have
        what a checkpoint holds. Loading may have called ``optimizer.step()`` to have the optimizers make their states.

        Raises:
            ValueError, TypeError: training has no known length, or `fggp.Pruner` refuses an argument.
        """
        clock, loaded = self._clock, self._loaded
        clock.set(trainer, pl_module, self._max_epochs)
        if self._pruner is not None and self._module is not pl_module:
            self._pruner.remove()
            self._pruner = None
        begins = self._pruner is None and loaded is None
        if self._pruner is None:
            clock.start(trainer, 0)
            make = self._make if loaded is None else self._make_to_load
            self._pruner, self._module = make(trainer, pl_module), pl_module
            if loaded is not None:
                self._restore(loaded)
        else:
            if loaded is not None:
                self._restore(loaded)  # first: the masks of the earlier fit may not be those of the weights
            self._pruner.attach(_optimizers(trainer))
        self._loaded, self._ready = None, True
        if not begins:
            self._fit_into(trainer, resumed=loaded is not None)
        elif not isinstance(self._pruner.method, OneShot):
            clock.aim(self._pruner.schedule)
        self._finished = self._pruner.finished
        self._trainable = _trainable(trainer)
        self._followed = {}
        self._follow_copies(trainer, pl_module)

    def _given(self, pl_module: LightningModule) -> dict[str, Any]:
        """The Pruner's arguments; averages that the module keeps itself are excluded, as no optimizer trains them."""
        averages = averages_within(pl_module).items()
        patterns = [f"{name}.*" for name, module in averages if any(p.requires_grad for p in module.parameters())]
        if not patterns:
            return self._arguments
        exclude = self._arguments["exclude"]
        own = [exclude] if isinstance(exclude, (str, type)) else (exclude or [])
        return {**self._arguments, "exclude": [*own, *patterns]}

    def _make(self, trainer: Trainer, pl_module: LightningModule) -> fggp.Pruner:
        return self._pruner_for(_model(trainer), _optimizers(trainer), self._clock.left, self._given(pl_module))

    def _make_to_load(self, trainer: Trainer, pl_module: LightningModule) -> fggp.Pruner:
        """A Pruner that has not changed the weights, for a state that has the masks and the schedule."""
        method = self._method_for(1)
        dense: dict[str, Any] = {"begin": 0, "end": 1, "every": 1, "init": "erk", "init_sparsity": 0.0}
        first = FGGP() if isinstance(method, OneShot) else method
        # A BaseFinetuning callback freezes its layers anew, whether or not they had been thawed.
        assert self._loaded is not None
        masks = self._loaded["pruner"]["masks"]
        frozen = [p for name, p in pl_module.named_parameters() if name in masks and not p.requires_grad]
        arguments = {**self._given(pl_module), **dense, "method": first}
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            pruner = fggp.Pruner(_model(trainer), _optimizers(trainer), **arguments)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        pruner.method = method
        return pruner

    def _fit_into(self, trainer: Trainer, resumed: bool) -> None:
        """Move the end of pruning that began in another training, if this one would end before it."""
        pruner, clock = self.pruner, self._clock
        goes_on = clock.start(trainer, pruner.step) and resumed
        if isinstance(pruner.method, OneShot):
            return
        missed = pruner.schedule.end <= pruner.step and not pruner.finished
        if missed or pruner.schedule.end > pruner.step + clock.left:
            last, before = pruner.step + clock.left, pruner.schedule.end
            begin, end = self._earlier_end(clock.left)
            self._retime(begin, end)
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
            with warnings.catch_warnings():  # the end is moved below
                warnings.filterwarnings("ignore", "the schedule ended", RuntimeWarning)
                self.pruner.attach(_optimizers(trainer))
            self._fit_into(trainer, resumed=False)
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
        if not isinstance(pruner.method, OneShot) and clock.has_other_pace(patience=pruner.schedule.every):
            begin, end = clock.begin_and_end()
            self._retime(begin if pruner.step < pruner.schedule.begin else pruner.schedule.begin, end)
            _log.info("the pruner makes %.3g steps a batch: pruning ends at its step %d", clock.pace, end)

    def _retime(self, begin: int, end: int) -> None:
        every = max(1, (end - begin) // UPDATES) if self._every is None else self._every
        self._reschedule(begin, end, every, last=self.pruner.step + self._clock.left)

    def _follow_copies(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for copy in copies_in_callbacks(callbacks(trainer), pl_module):
            if copy not in self._followed:
                self._followed[copy] = copy
                self.pruner.follow(copy)
        for name, average in averages_within(pl_module).items():
            if average not in self._followed:
                self._followed[average] = None
                try:
                    self._followed[average] = copy = stand_in(pl_module, name)
                    self.pruner.follow(copy)
                except ValueError as error:
                    self._warn(trainer, f"the average {name!r} stays dense: {error}")

    def _restart_best(self, trainer: Trainer) -> None:
        """Compare from now on only models of the final sparsity with one another."""
        for checkpoint in _best_seekers(trainer):
            if checkpoint.best_model_path:
                self._superseded = (*self._superseded, checkpoint.best_model_path)
                checkpoint.best_k_models = {}
                checkpoint.kth_best_model_path = checkpoint.best_model_path = ""
                checkpoint.best_model_score = None
                _log.info("the final sparsity is reached: from now on the best %s is sought", checkpoint.monitor)
        for stopping in of_kind("EarlyStopping", trainer):
            stopping.best_score = torch.tensor(math.inf if stopping.mode == "min" else -math.inf)

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
        if self._loaded is not None:
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
            if self._pruner is not None and self._module is self._present:
                self._pruner.load_state_dict(state_dict["pruner"])
        elif self._ready:
            self._restore(state_dict)
        else:
            self._loaded = state_dict

    def _restore(self, state: dict[str, Any]) -> None:
        self.pruner.load_state_dict(state["pruner"])
        self._clock.load_state_dict(state["clock"])
        self._finished = self.pruner.finished


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


def _gathered(state: Any) -> Any:
    """A state with whole tensors instead of DTensors: Lightning saves callbacks' states from the first process only."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, dict):
        return {key: _gathered(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_gathered(value) for value in state]
    return state
