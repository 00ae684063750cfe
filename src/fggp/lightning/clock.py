"""How much of a training is done, and what an optimizer step is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import fggp
from fggp.lightning.trainers import of_kind

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class Clock:
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
        """Find out how long a training is; its data loader must have been made.

        Raises:
            ValueError: the training has no known length.
        """
        by_steps = math.inf if trainer.max_steps == -1 else trainer.max_steps
        by_epochs = math.inf
        manual = not pl_module.automatic_optimization
        if max_epochs != -1:
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
    for scheduler in of_kind("GradientAccumulationScheduler", trainer):
        scheduled: int = scheduler.get_accumulate_grad_batches(epoch)
        return scheduled
    return trainer.accumulate_grad_batches
