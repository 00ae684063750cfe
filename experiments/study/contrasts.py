"""What the study compares (experiments/PREREGISTRATION.md): its runs in groups, and contrasts between them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fggp.lab.grid.plan import plan_runs, read_tables
from fggp.lab.training.methods import name_of

HERE = Path(__file__).parent
PARTS = ("A", "D", "B", "E", "C")
"""In the order in which they run."""

FGGP, GMP, GRANET, DENSE = "fggp", "gmp", "granet", "dense"
MAGNITUDE_FIRST, RANDOM_FIRST = "magnitude-first", "random-first"
GRADIENT_ANNEALED, MAGNITUDE_ANNEALED = "gradient-first-annealed", "magnitude-first-annealed"
ONE_SHOT = "one-shot gmp"
EQUAL_WEIGHTS = {0.9: "resnet20@0.315", 0.95: "resnet20@0.22", 0.98: "resnet20@0.145"}
"""The dense network with about as many weights as ResNet-20 keeps at a sparsity."""
EQUAL_BYTES = {0.9: "resnet20@0.36", 0.95: "resnet20@0.27", 0.98: "resnet20@0.19"}
"""The dense network whose file is about as large as the small file of ResNet-20 at a sparsity."""


class Cell(NamedTuple):
    """What is the same for all seeds of a group of runs."""

    part: str
    method: str
    sparsity: float = 0.0
    model: str = "resnet20"
    epochs: int = 12

    def __str__(self) -> str:
        pruned = f" at {100 * self.sparsity:g} %" if self.sparsity else ""
        return f"{self.part}: {self.method}{pruned}, {self.model}, {self.epochs} epochs"


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of accuracies, in percent points."""

    name: str
    what: str
    weights: Mapping[Cell, float]
    primary: bool = False

    @property
    def part(self) -> str:
        return self.name[0]


@dataclass
class Sum:
    """Builds the weights of a contrast."""

    weights: dict[Cell, float] = field(default_factory=dict)

    def __add__(self, other: "Sum") -> "Sum":
        cells = [*self.weights, *(cell for cell in other.weights if cell not in self.weights)]
        return Sum({cell: self.weights.get(cell, 0.0) + other.weights.get(cell, 0.0) for cell in cells})

    def __rmul__(self, factor: float) -> "Sum":
        return Sum({cell: factor * weight for cell, weight in self.weights.items()})

    def __sub__(self, other: "Sum") -> "Sum":
        return self + -1.0 * other


def mean_of(cells: Sequence[Cell]) -> Sum:
    return Sum({cell: 1 / len(cells) for cell in cells})


def contrasts() -> list[Contrast]:
    """Return the contrasts of PREREGISTRATION.md, in its order."""

    def a(method: str, *sparsities: float) -> Sum:
        return mean_of([Cell("A", method, sparsity) for sparsity in sparsities or (0.95, 0.98)])

    def b(method: str) -> Sum:
        return mean_of([Cell("B", method, 0.98)])

    def c(method: str) -> Sum:
        return mean_of([Cell("C", method, 0.98, epochs=36)])

    def d(method: str, *sparsities: float) -> Sum:
        return mean_of([Cell("D", method, s, "vgg19@0.25", 36) for s in sparsities or (0.9, 0.98)])

    def e(method: str, *sparsities: float) -> Sum:
        # Both at 95 and 98 % and 12 epochs are runs of part A.
        where = {s: "A" if s > 0.9 and method in (FGGP, GMP) else "E" for s in sparsities or (0.9, 0.95, 0.98)}
        return mean_of([Cell(part, method, s) for s, part in where.items()])

    def narrow(models: Mapping[float, str], *sparsities: float, epochs: int = 12) -> Sum:
        return mean_of([Cell("E", DENSE, 0.0, models[s], epochs) for s in sparsities or (0.9, 0.95, 0.98)])

    def whole(model: str, part: str, epochs: int) -> Sum:
        return mean_of([Cell(part, DENSE, 0.0, model, epochs)])

    fixed, annealed = (a(FGGP), a(MAGNITUDE_FIRST)), (a(GRADIENT_ANNEALED), a(MAGNITUDE_ANNEALED))
    lead_12 = a(FGGP, 0.98) - a(GMP, 0.98)
    primary = {
        "A1": ("order: gradient first − magnitude first", 0.5 * (fixed[0] + annealed[0] - fixed[1] - annealed[1])),
        "A2": ("quota: fixed − annealed", 0.5 * (fixed[0] + fixed[1] - annealed[0] - annealed[1])),
        "A3": ("order × quota: what order gains by a fixed quota", fixed[0] - annealed[0] - (fixed[1] - annealed[1])),
        "A4": ("FGGP − GMP", a(FGGP) - a(GMP)),
        "A5": ("FGGP − random first", a(FGGP) - a(RANDOM_FIRST)),
        "B1": ("what FGGP's lead over GMP gains by pruning from epoch 1, not 0", b(FGGP) - b(GMP) - lead_12),
        "B2": ("GMP from epoch 1 − GMP from epoch 0", b(GMP) - a(GMP, 0.98)),
        "C1": ("FGGP − GMP, 36 epochs", c(FGGP) - c(GMP)),
        "C2": ("what FGGP's lead over GMP gains by 36 epochs, not 12", c(FGGP) - c(GMP) - lead_12),
        "D1": ("FGGP − GMP, VGG-19", d(FGGP) - d(GMP)),
        "D2": ("FGGP − random first, VGG-19", d(FGGP) - d(RANDOM_FIRST)),
        "E1": ("FGGP − narrow dense of equal weights", e(FGGP) - narrow(EQUAL_WEIGHTS)),
        "E2": ("FGGP − narrow dense of equal bytes", e(FGGP) - narrow(EQUAL_BYTES)),
        "E3": ("FGGP − one-shot magnitude pruning", e(FGGP) - e(ONE_SHOT)),
        "E4": (
            "FGGP − narrow dense of equal weights, 98 %, 36 epochs",
            c(FGGP) - narrow(EQUAL_WEIGHTS, 0.98, epochs=36),
        ),
    }
    secondary = {
        "A": {
            "FGGP − magnitude first": a(FGGP) - a(MAGNITUDE_FIRST),
            "FGGP − GraNet": a(FGGP) - a(GRANET),
            "random first − GMP": a(RANDOM_FIRST) - a(GMP),
            "magnitude first − GMP": a(MAGNITUDE_FIRST) - a(GMP),
            **{f"FGGP − GMP, {100 * s:g} %": a(FGGP, s) - a(GMP, s) for s in (0.95, 0.98)},
            **{f"FGGP − random first, {100 * s:g} %": a(FGGP, s) - a(RANDOM_FIRST, s) for s in (0.95, 0.98)},
        },
        "B": {
            "FGGP − GMP from epoch 1": b(FGGP) - b(GMP),
            "FGGP − random first from epoch 1": b(FGGP) - b(RANDOM_FIRST),
            "FGGP from epoch 1 − FGGP from epoch 0": b(FGGP) - a(FGGP, 0.98),
        },
        "C": {
            "FGGP − random first, 36 epochs": c(FGGP) - c(RANDOM_FIRST),
            "FGGP − magnitude first, 36 epochs": c(FGGP) - c(MAGNITUDE_FIRST),
        },
        "D": {
            **{f"FGGP − GMP, VGG-19, {100 * s:g} %": d(FGGP, s) - d(GMP, s) for s in (0.9, 0.98)},
            **{f"FGGP − random first, VGG-19, {100 * s:g} %": d(FGGP, s) - d(RANDOM_FIRST, s) for s in (0.9, 0.98)},
            **{
                f"FGGP at {100 * s:g} % − dense, VGG-19": d(FGGP, s) - whole("vgg19@0.25", "D", 36) for s in (0.9, 0.98)
            },
        },
        "E": {
            **{f"FGGP − equal weights, {100 * s:g} %": e(FGGP, s) - narrow(EQUAL_WEIGHTS, s) for s in EQUAL_WEIGHTS},
            **{f"FGGP − equal bytes, {100 * s:g} %": e(FGGP, s) - narrow(EQUAL_BYTES, s) for s in EQUAL_BYTES},
            **{f"FGGP − one-shot, {100 * s:g} %": e(FGGP, s) - e(ONE_SHOT, s) for s in EQUAL_WEIGHTS},
            "FGGP − GMP, 90 %": e(FGGP, 0.9) - e(GMP, 0.9),
            "GMP − narrow dense of equal weights": e(GMP) - narrow(EQUAL_WEIGHTS),
            "GMP − one-shot magnitude pruning": e(GMP) - e(ONE_SHOT),
            "FGGP − equal bytes, 98 %, 36 epochs": c(FGGP) - narrow(EQUAL_BYTES, 0.98, epochs=36),
            **{f"FGGP at {100 * s:g} % − dense": e(FGGP, s) - whole("resnet20", "E", 12) for s in EQUAL_WEIGHTS},
        },
    }
    found = [Contrast(name, what, weights.weights, primary=True) for name, (what, weights) in primary.items()]
    for part, own in secondary.items():
        first = sum(contrast.part == part for contrast in found) + 1
        found += [Contrast(f"{part}{n}", what, own[what].weights) for n, what in enumerate(own, first)]
    return sorted(found, key=lambda contrast: (contrast.part, int(contrast.name[1:])))


def cell_of(part: str, method: str, settings: Mapping[str, object]) -> Cell:
    """Return the cell of a run, by its part, its method's name and its settings."""
    one_shot = settings["every"] is not None  # no other run of the study sets it
    return Cell(
        part,
        f"one-shot {method}" if one_shot else method,
        float(str(settings["sparsity"])),
        str(settings["model"]),
        int(str(settings["epochs"])),
    )


def planned() -> dict[Cell, set[int]]:
    """Return the seeds of every cell, as the files of the parts say."""
    seeds: dict[Cell, set[int]] = defaultdict(set)
    for part in PARTS:
        for run in plan_runs(read_tables(HERE / f"{part}.toml", {})):
            seeds[cell_of(part, name_of(run.method), run.as_json())].add(run.seed)
    return dict(seeds)
