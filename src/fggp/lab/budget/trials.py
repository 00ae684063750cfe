"""Complete runs at a sparsity, in several seeds where that could change the answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from fggp.lab.base import Json
from fggp.lab.base.errors import UsageError
from fggp.lab.budget.estimate import Estimate, estimate, validation_accuracies
from fggp.lab.budget.prediction import Meter
from fggp.lab.budget.settings import BudgetSettings
from fggp.lab.budget.wishes import Cost, Wishes
from fggp.lab.export.trained import load_network
from fggp.lab.grid.grid import OpenGrid
from fggp.lab.training.run_folder import RunFolder


@dataclass(frozen=True)
class Trial:
    """What was found at a sparsity.

    Attributes:
        sparsity: the target of the runs; 0 for dense ones.
        records: of its runs.
        estimate: of their accuracy.
        cost: measured, of the run that is best on validation images.
    """

    sparsity: float
    records: Sequence[Json]
    estimate: Estimate
    cost: Cost

    @property
    def best(self) -> Json:
        """The record of the run with the highest validation accuracy, the first of equals."""
        return best_of(self.records)

    def meets(self, wishes: Wishes) -> bool:
        """Whether all limits are met."""
        return (wishes.drop is None or self.estimate.meets(wishes.drop)) and wishes.met_by(self.cost)


def best_of(records: Sequence[Json]) -> Json:
    """Return the record with the highest validation accuracy, the first of equals."""
    return max(records, key=lambda record: record["val_accuracy"])


class Trials:
    """Runs of a grid, made when they are asked for.

    Args:
        grid: trains them.
        settings: of the command.
        wishes: its limits.
        meter: measures trained networks.
        start: validation accuracy of the trained weights that the runs start from; None if there are none.

    Attributes:
        dense: the reference.
        tried: by sparsity, dense networks first.
    """

    def __init__(
        self, grid: OpenGrid, settings: BudgetSettings, wishes: Wishes, meter: Meter, start: float | None
    ) -> None:
        self.grid, self.settings, self.wishes, self.meter, self.start = grid, settings, wishes, meter, start
        dense = self._runs(0.0, 1 if wishes.drop is None else settings.seeds)
        self.images: int = dense[0]["images"]["val"]
        self.tried: dict[float, Trial] = {}
        self.dense = self.tried[0.0] = self._trial(0.0, dense, dense)

    def at(self, sparsity: float) -> Trial:
        """Return what is found at a sparsity, by one run, or by all seeds if it is close to the limit."""
        if sparsity not in self.tried:
            records = self._runs(sparsity, 1)
            if self.wishes.drop is not None and self._estimate(records).close_to(self.wishes.drop):
                records = self._runs(sparsity, self.settings.seeds)
            self.tried[sparsity] = self._trial(sparsity, records, self.dense.records)
        return self.tried[sparsity]

    def folder(self, record: Json) -> RunFolder:
        """Return the folder of a run."""
        return self.grid.folder.run_folder(record["run"])

    def _trial(self, sparsity: float, records: Sequence[Json], dense: Sequence[Json]) -> Trial:
        cost = self.meter.cost(load_network(self.folder(best_of(records)).path))
        return Trial(sparsity, records, self._estimate(records, dense), cost)

    def _estimate(self, records: Sequence[Json], dense: Sequence[Json] | None = None) -> Estimate:
        reference = self.dense.records if dense is None else dense
        accuracies = validation_accuracies(reference), validation_accuracies(records)
        return estimate(*accuracies, self.images, self.start)

    def _runs(self, sparsity: float, seeds: int) -> list[Json]:
        runs = [self.settings.run(sparsity, seed) for seed in range(seeds)]
        result = self.grid.run(runs, shown="val")
        for name, reason in result.failed.items():
            raise UsageError(f"run {name} failed: {reason.strip().splitlines()[-1]}")
        return [self.grid.folder.records[name] for name in self.grid.folder.name_runs(runs)]
