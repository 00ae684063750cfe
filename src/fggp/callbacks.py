"""What the callbacks for trainers have in common: a Pruner that is made once the length of training is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

import fggp
from fggp.masks.starts import Init
from fggp.methods import FGGP, GraNet, Method, OneShot, resolve
from fggp.model.find import Filter
from fggp.pruner.update import Scope
from fggp.schedule import Curve, cubic
from fggp.training_shares import check_shares, steps_of_shares


class PruningCallback:
    """Keeps the Pruner's arguments until training starts, and then the Pruner.

    A trainer's callback is a subclass of this class and of the trainer's own, in this order. Its docstring describes
    the arguments.
    """

    _pruner: fggp.Pruner | None = None

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

    @property
    def pruner(self) -> fggp.Pruner:
        """The Pruner.

        Raises:
            RuntimeError: training has not started in this process.
        """
        if self._pruner is None:
            raise RuntimeError("the Pruner is made when the trainer starts to train, in each process that trains")
        return self._pruner

    def _method_for(self, total: int) -> Method | OneShot:
        """The method for a training of ``total`` steps."""
        return GraNet(total_steps=total) if self._method == GraNet.name else resolve(self._method)

    def _pruner_for(self, model: nn.Module, optimizer: Any, total: int, arguments: Mapping[str, Any]) -> fggp.Pruner:
        """The Pruner for a training of ``total`` steps, with the arguments that do not depend on its length."""
        method = self._method_for(total)
        steps = steps_of_shares(total, self._begin, self._end, self._every)
        when: dict[str, Any] = {} if isinstance(method, OneShot) else steps._asdict()
        return fggp.Pruner(model, optimizer, method=method, **when, **arguments)

    def _earlier_end(self, left: int) -> tuple[int, int]:
        """When to begin and end pruning that cannot end as planned: at this callback's share of the steps left."""
        end = self.pruner.step + steps_of_shares(left, 0.0, self._end, None).end
        return min(self.pruner.schedule.begin, end - 1), end

    def _reschedule(self, begin: int, end: int, every: int | None, last: int) -> None:
        """Prune at other steps, in a training that lasts until step ``last``; ``every`` may stay as it is."""
        if self._method == GraNet.name:
            self.pruner.method = GraNet(total_steps=last)
        self.pruner.reschedule(begin=begin, end=end, every=every)
