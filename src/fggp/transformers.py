"""Prunes while the Hugging Face Trainer trains: ``Trainer(…, callbacks=[Pruning(sparsity=0.9)])``."""

from __future__ import annotations

import base64
import inspect
import io
import json
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fggp.callbacks import PruningCallback
from fggp.methods import OneShot
from fggp.training_shares import steps_of_shares

try:
    from transformers.trainer_callback import ExportableState, TrainerCallback, TrainerControl, TrainerState
    from transformers.training_args import TrainingArguments
except ImportError as error:
    raise ImportError(
        "fggp.transformers needs Transformers and Accelerate: pip install 'fggp[transformers]'"
    ) from error


class Pruning(PruningCallback, TrainerCallback, ExportableState):
    """Prunes the model that a `transformers.Trainer` trains.

    The `fggp.Pruner` is made when training begins. When to prune is given as shares of training, which the Trainer's
    epochs, ``max_steps`` and gradient accumulation turn into optimizer steps.

    The pruner's state lies in each checkpoint's ``trainer_state.json``, with ``save_only_model`` too: when the Trainer
    resumes, it tells callbacks no path of a checkpoint. ``train(resume_from_checkpoint=…)`` goes on from there. A
    checkpoint without that state is pruned over the rest of training. A second ``train()`` goes on with the masks of
    the first.

    Accuracy falls while weights are pruned, so the best model of a whole training would be one from before the target.
    The Trainer's best therefore starts anew at the step that reaches the target. From there on
    ``load_best_model_at_end``, ``save_strategy="best"`` and ``EarlyStoppingCallback`` compare only models of the final
    sparsity. Training that ends before it keeps the best until then, and warns.

    Each log has the present sparsity, as ``sparsity``. Reporters see it if they come after this callback:
    ``report_to="none", callbacks=[Pruning(0.9), TensorBoardCallback()]``.

    Args:
        sparsity: the final share of zeros among the prunable weights, or shares by name pattern; see `fggp.Pruner`.
        begin: the share of training from which the schedule counts, in [0, 1).
        end: the share of training from which ``sparsity`` holds, in (begin, 1]. By default half, as in the literature:
            it prunes until half of training and then trains the remaining weights at lower learning rates.
        every: optimizer steps between two mask updates; by default a 31st of the steps from ``begin`` to ``end``.
        method: see `fggp.Pruner`. ``"granet"`` gets its ``total_steps`` from the Trainer.
        schedule, init_sparsity, init, scope, floor, include, exclude, seed: see `fggp.Pruner`.

    Raises:
        ValueError, TypeError: an argument is wrong. What `fggp.Pruner` refuses is raised when training begins, and so
            are checkpoints of sharded weights (FSDP), which the Trainer's files cannot hold.
    """

    _model: nn.Module | None = None  # whose weights the pruner prunes
    _finished = False
    _superseded: str | None = None  # the best checkpoint from before the final sparsity

    # Before training

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse arguments from which the Trainer could not make this callback again, if it is to do so.

        Raises:
            ValueError: there is one.
        """
        if args.restore_callback_states_from_checkpoint:
            for name, value in self._given().items():
                if not _is_json(value):
                    raise ValueError(
                        f"restore_callback_states_from_checkpoint=True makes callbacks anew from JSON, which cannot "
                        f"hold {name}={value!r} of Pruning: leave one of them out. Pruning restores its own state "
                        f"without it"
                    )

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Make the Pruner, or bind the one of an earlier training to the new optimizer.

        Raises:
            ValueError: the Trainer has two of this callback, its checkpoints cannot hold the masks, or `fggp.Pruner`
                refuses an argument.
        """
        model: nn.Module = kwargs["model"]
        optimizer: torch.optim.Optimizer = kwargs["optimizer"]
        if isinstance(_entry(state, type(self).__name__), list):
            raise ValueError(
                "the Trainer has several Pruning callbacks: give it one, with sparsity={<name pattern>: <share>, …}"
            )
        if args.save_strategy != "no" and any(isinstance(p, DTensor) for p in model.parameters()):
            raise ValueError(
                f"save_strategy={json.dumps(args.save_strategy)} must be 'no' with sharded weights, whose masks the "
                f"Trainer's checkpoints cannot hold. To save them, use fggp.Pruner and torch.distributed.checkpoint"
            )
        resumed = state.global_step > 0
        saved = _saved_in(state, type(self).__name__) if resumed else None
        left = max(1, state.max_steps - state.global_step)
        # The Trainer has loaded the checkpoint's weights already. Neither a sparse start nor the masks of an earlier
        # training may zero any of them.
        with _left_as_they_are(model, optimizer) if saved is not None else nullcontext():
            made = self._pruner is None or self._model is not model
            if self._pruner is None or made:
                self._pruner, self._model = self._pruner_for(model, optimizer, left, self._arguments), model
            else:
                with warnings.catch_warnings():
                    if saved is not None:  # the checkpoint's weights; its masks are loaded below
                        warnings.filterwarnings("ignore", "attach zeroes them again", RuntimeWarning)
                    self._pruner.attach(optimizer)
        if saved is not None:
            self._pruner.load_state_dict(saved)
        if not made or saved is not None:
            self._fit_into(left)
        self._finished, self._superseded = self._pruner.finished, None

    def _fit_into(self, left: int) -> None:
        """Let the schedule end within the steps that are left, where it would not."""
        pruner = self.pruner
        if isinstance(pruner.method, OneShot):
            return
        steps = steps_of_shares(left, self._begin, self._end, self._every)
        if pruner.step == 0:
            self._reschedule(*steps, last=left)  # the Trainer has begun anew, with another batch size
        elif not pruner.finished and pruner.schedule.end - pruner.step > left:
            before, (begin, end) = pruner.schedule.end, self._earlier_end(left)
            self._reschedule(begin, end, steps.every, last=pruner.step + left)
            warnings.warn(
                f"pruning was to end at optimizer step {before}, but training now ends at step {pruner.step + left}: "
                f"pruning ends at step {end} instead",
                UserWarning,
                stacklevel=2,
            )

    # While training

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Notice when pruning is done; from then on only models of the final sparsity are compared."""
        pruner = self.pruner
        self._keep_pace(state.max_steps - state.global_step)
        if not self._finished and pruner.finished:
            self._finished, self._superseded = True, state.best_model_checkpoint
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def _keep_pace(self, left: int) -> None:
        """End earlier by the steps that a GradScaler has skipped, if the end would not come otherwise."""
        pruner = self.pruner
        end = pruner.step + left
        if left and pruner.schedule.end > end and not (pruner.finished or isinstance(pruner.method, OneShot)):
            self._reschedule(min(pruner.schedule.begin, end - 1), end, None, last=end)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Log the sparsity."""
        if self._pruner is not None:
            # The Trainer has copied the logs to its history already.
            kwargs["logs"]["sparsity"] = state.log_history[-1]["sparsity"] = self._pruner.sparsity

    # After training

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the masks of the best model if the Trainer has loaded it; say what is not as it should be."""
        pruner, loaded = self.pruner, ""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            folder = Path(state.best_model_checkpoint)
            saved = _saved_in(TrainerState.load_from_json(str(folder / "trainer_state.json")), type(self).__name__)
            if saved is not None:
                pruner.load_state_dict(saved)
            loaded = f", and load_best_model_at_end has loaded {folder.name}"
        if not state.is_world_process_zero:
            return
        if not pruner.finished:
            warnings.warn(
                f"pruning has not ended: sparsity is {pruner.sparsity:.2%} of {pruner.schedule.sparsity:.2%}. Training "
                f"ended at step {state.global_step} of {state.max_steps}{loaded}; pruning ends at step "
                f"{pruner.schedule.end}. Train on, or call finish() of this callback's pruner to prune the rest now",
                UserWarning,
                stacklevel=2,
            )
        elif args.load_best_model_at_end and self._superseded and state.best_model_checkpoint is None:
            warnings.warn(
                f"load_best_model_at_end: no checkpoint was saved since the final sparsity was reached, at optimizer "
                f"step {pruner.schedule.end}. The model is that of the last step; {self._superseded} is less sparse",
                UserWarning,
                stacklevel=2,
            )

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """What the Trainer writes to a checkpoint's ``trainer_state.json`` for this callback."""
        arguments = {name: value for name, value in self._given().items() if _is_json(value)}
        packed = None if self._pruner is None else _to_text(self._pruner.state_dict())
        return {"args": arguments, "attributes": {"pruner_state": packed}}

    def _given(self) -> dict[str, Any]:
        """The arguments that are not the default ones."""
        values = {"begin": self._begin, "end": self._end, "every": self._every, "method": self._method}
        values |= self._arguments
        defaults = {name: p.default for name, p in inspect.signature(Pruning).parameters.items()}
        return {name: value for name, value in values.items() if name == "sparsity" or value is not defaults[name]}


def _entry(state: TrainerState, name: str) -> Any:
    """What the Trainer's state has of the callbacks of this name: a dict, a list of several, or None."""
    callbacks: Any = state.stateful_callbacks  # by name, whatever its annotation says
    return callbacks.get(name)


def _saved_in(state: TrainerState, name: str) -> dict[str, Any] | None:
    """The pruner's state in the Trainer's, as the callback of this name has saved it there."""
    saved = _entry(state, name)
    text = None if saved is None else saved["attributes"]["pruner_state"]
    return None if text is None else _from_text(text)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _to_text(state: Mapping[str, Any]) -> str:
    """A state as ASCII text for JSON: saved, compressed, in base 64."""
    file = io.BytesIO()
    torch.save(state, file)
    return base64.b64encode(zlib.compress(file.getvalue())).decode("ascii")


def _from_text(text: str) -> dict[str, Any]:
    """The inverse of `_to_text`."""
    state: dict[str, Any] = torch.load(io.BytesIO(zlib.decompress(base64.b64decode(text))), weights_only=True)
    return state


@contextmanager
def _left_as_they_are(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Undo what the block does to weights and optimizer state. The copies lie on the CPU."""
    tensors: list[Tensor] = [p.data for p in model.parameters()]
    tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    copies = [t.cpu().clone() for t in tensors]
    yield
    with torch.no_grad():
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.copy_(copy)
