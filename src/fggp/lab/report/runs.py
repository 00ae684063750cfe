"""A run as a report sees it, made from a record that was checked."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fggp.lab.base import Json

Split = Literal["test", "validation"]

REQUIRED_KEYS = ("run", "method", "model", "data", "sparsity", "init_sparsity", "seed", "test_accuracy", "val_accuracy")
FIELD_SETTINGS = {"data", "data_name", "model", "method", "sparsity", "init_sparsity", "seed", "epochs", "rate"}
"""Settings that a `Run` holds in a field of its own."""
PRUNING_SETTINGS = {"rate", "scope", "granularity", "exclude", "prune_begin", "prune_end", "every", "accelerate"}
"""Settings that decide nothing in a dense run."""
MACHINE_SETTINGS = {"device"}
"""Settings that say where a run was made, not what it is."""
ACCURACY_KEYS: dict[Split, str] = {"test": "test_accuracy", "validation": "val_accuracy"}
"""Key of each split's accuracy in records and curves."""
SPARSITY_DECIMALS = 3
"""Decimals of a measured sparsity that are compared: a target is met to the weight, not to the last digit."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run. Accuracies are percent, sparsities and densities are shares.

    Args:
        name, method, model, data, seed: as recorded.
        sparsity: the target where it was recorded, else the measured one, rounded.
        init_sparsity: share of zeros at the start.
        test_accuracy, val_accuracy: after the last epoch; the latter is None where nothing was held out.
        by: the split whose accuracy is compared.
        epochs: length of training, None where unknown.
        rate: of the method, None where it has none or it is unknown.
        settings: all other settings that decide the result; empty where none were recorded.
        curve: lists of equal length by name, with "epoch" and at least one accuracy; empty where unknown.
        densities: share of kept weights after training, by layer; empty where unknown.
        record: the whole record.
        source: its file and line.
    """

    name: str
    method: str
    model: str
    data: str
    sparsity: float
    init_sparsity: float
    seed: int
    test_accuracy: float
    val_accuracy: float | None
    by: Split = "test"
    epochs: int | None = None
    rate: float | None = None
    settings: Json = field(default_factory=dict)
    curve: dict[str, list[float]] = field(default_factory=dict)
    densities: dict[str, float] = field(default_factory=dict)
    record: Json = field(default_factory=dict)
    source: str = ""

    @property
    def dense(self) -> bool:
        """Whether nothing was pruned: an upper bound to compare with."""
        return self.method == "dense"

    @property
    def accuracy(self) -> float:
        """The accuracy that is compared, percent."""
        if self.by == "test":
            return self.test_accuracy
        assert self.val_accuracy is not None, "`parse` refuses such records"
        return self.val_accuracy

    @property
    def sparse_throughout(self) -> bool:
        """Whether the run started at its final sparsity."""
        tolerance = 0.6 * 10**-SPARSITY_DECIMALS
        return self.init_sparsity > 0 and math.isclose(self.init_sparsity, self.sparsity, abs_tol=tolerance)

    @property
    def variant(self) -> str:
        """Rate and settings as canonical JSON: what tells this way of training from others of the method."""
        return json.dumps([self.rate, self.settings], sort_keys=True)

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for two records of the same run."""
        where = (self.data, self.model, self.epochs, self.init_sparsity, self.sparsity)
        return (*where, self.method, self.variant, self.seed)


def parse(record: object, source: str = "", by: Split = "test") -> tuple[Run, list[str]]:
    """Make a run from a record.

    Args:
        record: as read from JSON.
        source: its file and line.
        by: the split whose accuracy is compared.

    Returns:
        The run, and notes on optional parts of the record that could not be used.

    Raises:
        ValueError: the record is not usable; the message names the key.
    """
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__} instead of an object")
    missing = [key for key in REQUIRED_KEYS if key not in record]
    if missing:
        raise ValueError(f"no {', '.join(missing)} in it")
    if by == "validation" and record["val_accuracy"] is None:
        raise ValueError("nothing was held out, so it has no validation accuracy")
    settings = record.get("settings") or {}
    if not isinstance(settings, dict):
        raise ValueError(f"settings is {settings!r:.60}; it must be an object")
    method = _text(record, "method")
    dense = method == "dense"
    measured = _number(record, "sparsity", 0, 1)
    notes: list[str] = []
    if dense:
        target = 0.0
    elif settings.get("sparsity") is None:
        target = round(measured, SPARSITY_DECIMALS)
    else:
        target = _number(settings, "sparsity", 0, 1)
        if abs(target - measured) > 0.005:
            notes.append(f"{source}: its sparsity is {measured:.4f}, its target was {target:g}; shown under the target")
    ignored = FIELD_SETTINGS | MACHINE_SETTINGS | (PRUNING_SETTINGS if dense else set())
    budgets = [_integer(place, "epochs") for place in (settings, record) if place.get("epochs") is not None]
    rates = [_number(place, "rate", 0, 1) for place in (settings, record) if place.get("rate") is not None]
    return Run(
        name=_text(record, "run"),
        method=method,
        model=_text(record, "model"),
        data=_text(record, "data"),
        sparsity=target,
        init_sparsity=0.0 if dense else round(_number(record, "init_sparsity", 0, 1), SPARSITY_DECIMALS),
        seed=_integer(record, "seed"),
        test_accuracy=_number(record, "test_accuracy", 0, 100),
        val_accuracy=None if record["val_accuracy"] is None else _number(record, "val_accuracy", 0, 100),
        by=by,
        epochs=budgets[0] if budgets else None,
        rate=rates[0] if rates and not dense else None,
        # None says as little as an absent setting.
        settings={name: value for name, value in settings.items() if name not in ignored and value is not None},
        curve=_curve(record.get("curve"), notes, source),
        densities={} if dense else _densities(record.get("densities"), notes, source),
        record=record,
        source=source,
    ), notes


def _text(record: Json, key: str) -> str:
    if not isinstance(record[key], str) or not record[key]:
        raise ValueError(f"{key} is {record[key]!r:.60}; it must be text")
    return str(record[key])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(record: Json, key: str, low: float, high: float) -> float:
    value = record[key]
    if not _is_number(value) or not low <= value <= high:
        raise ValueError(f"{key} is {value!r:.60}; it must be a number from {low} to {high}")
    return float(value)


def _integer(record: Json, key: str) -> int:
    value = record[key]
    if not _is_number(value) or value != int(value):
        raise ValueError(f"{key} is {value!r:.60}; it must be a whole number")
    return int(value)


def _curve(curve: object, notes: list[str], source: str) -> dict[str, list[float]]:
    if not curve:
        return {}
    if isinstance(curve, dict):
        numbers = {name: values for name, values in curve.items() if _are_numbers(values)}
        length = len(numbers.get("epoch", ()))
        usable = {name: values for name, values in numbers.items() if len(values) == length}
        if not usable.keys().isdisjoint(ACCURACY_KEYS.values()):
            return usable
    expected = "lists of numbers of one length, epoch and val_accuracy or test_accuracy among them"
    notes.append(f"{source}: curve not used, it must hold {expected}")
    return {}


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))


def _densities(densities: object, notes: list[str], source: str) -> dict[str, float]:
    if not densities:
        return {}
    if isinstance(densities, Mapping) and _are_numbers([*densities.values()]):
        return {str(layer): float(density) for layer, density in densities.items()}
    notes.append(f"{source}: densities not used, it must hold a number for each layer")
    return {}


def shared_settings(runs: Sequence[Run]) -> Json:
    """Return the recorded settings that all runs have with the same value."""
    recorded = [run.record.get("settings") or {} for run in runs]
    return {
        name: value
        for name, value in recorded[0].items()
        if all(name in other and (other[name], type(other[name])) == (value, type(value)) for other in recorded)
    }
