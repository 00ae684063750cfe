"""Draw docs/images/architecture.png from the code: packages, their lines, and who imports whom.

Where a package stands is written down here; that arrows only point downwards is what `lint-imports` checks.
"""

from pathlib import Path

import grimp
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fggp"
INK, PAPER, FRAME = "#1f2933", "#ffffff", "#9aa5b1"
CORE, SHIP, LAB, LEAF = "#dbeafe", "#dcfce7", "#fef3c7", "#f1f5f9"

# package: (column, row from the top, width, colour, what it is about)
PLACES = {
    "lab": (0, 0, 4, LAB, "commands: data, networks, training, grids, reports, benchmarks, export"),
    "callbacks": (0, 1, 2, CORE, "for the trainers of Lightning and Transformers"),
    "pruner": (0, 2, 1, CORE, "a method bound to a model"),
    "acceleration": (1, 2, 1, CORE, "training skips pruned weights"),
    "methods": (0, 3, 1, CORE, "FGGP, GMP, GraNet, RigL, SNIP, …"),
    "model": (1, 3, 1, CORE, "which parameters are prunable"),
    "masks": (0, 4, 2, CORE, "sparse starts; masks in force and stored"),
    "selection": (0, 5, 2, CORE, "exactly the k lowest-ranked weights"),
    "scores": (0, 6, 1, CORE, "what weights are ranked by"),
    "schedule": (1, 6, 1, CORE, "how many are active at step t"),
    "weights": (0, 7, 2, CORE, "where their parts, gradients and optimizers are"),
    "ship.onnx": (2, 2, 1, SHIP, "an ONNX file as a graph"),
    "ship.quantize": (2, 3, 1, SHIP, "a graph on whole numbers"),
    "ship.file": (2, 5, 1, SHIP, "the small file"),
    "ship.runtime": (3, 3, 1, SHIP, "the library's parts and PyTorch's"),
    "ship.network": (3, 4, 1, SHIP, "a graph as a network file"),
    "ship.graph": (3, 5, 1, SHIP, "a model as a graph of operations"),
    "registry": (2, 7, 1, LEAF, "how far pruning got"),
    "native": (0, 8, 4, LEAF, "loads the compiled library: csrc/ behind csrc/fggp.h"),
}
# Modules at the top of the package that belong to one of the places above.
PART_OF = {
    "graph_breaks": "pruner",
    **dict.fromkeys(("lightning", "transformers", "training_shares"), "callbacks"),
}
# What `import fggp` hands on, which is how the lab uses them.
PUBLIC = ("pruner", "ship.file", "ship.runtime", "ship.onnx", "ship.quantize")
WIDTH, HEIGHT, GAP = 3.4, 0.92, 0.34


def place_of(module: str) -> str | None:
    """The place that a module belongs to; None for the leaf helpers, which anything may use."""
    parts = module.split(".")[1:]
    if not parts:
        return None
    first = PART_OF.get(parts[0], parts[0])
    for place in (first, ".".join([first, *parts[1:2]])):
        if place in PLACES:
            return place
    return None


def lines_of(place: str) -> int:
    """Lines of Python in a place."""
    files = SOURCE.rglob("*.py")
    modules = {file: ".".join(("fggp", *file.relative_to(SOURCE).with_suffix("").parts)) for file in files}
    return sum(len(f.read_text().splitlines()) for f, module in modules.items() if place_of(module) == place)


def unplaced() -> list[str]:
    """Packages with modules of their own that have no place in the picture."""
    packages = {file.parent.relative_to(SOURCE).parts for file in SOURCE.rglob("*.py") if file.name != "__init__.py"}
    names = {".".join(("fggp", *parts)) for parts in packages if parts}
    return sorted(name for name in names if place_of(name) is None)


def arrows() -> set[tuple[str, str]]:
    """Which places import which, lazy imports included."""
    graph = grimp.build_graph("fggp", cache_dir=None)
    found = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            start = place_of(module)
            for end in PUBLIC if imported == "fggp" else [place_of(imported)]:
                if start and end and start != end:
                    found.add((start, end))
    return found


def main() -> None:
    """Draw the picture."""
    if missing := unplaced():
        raise SystemExit(f"PLACES in {Path(__file__).name} has no place for {', '.join(missing)}")
    figure, axes = plt.subplots(figsize=(12, 10), dpi=110)
    boxes = {}
    for name, (column, row, width, colour, about) in PLACES.items():
        x, y = column * (WIDTH + GAP), -row * (HEIGHT + 2 * GAP)
        w = width * WIDTH + (width - 1) * GAP
        boxes[name] = x, y, w
        axes.add_patch(
            FancyBboxPatch((x, y), w, HEIGHT, "round,pad=0,rounding_size=0.1", facecolor=colour, edgecolor=FRAME)
        )
        title = f"{name.replace('.', '/')}  ·  {lines_of(name):,} lines"
        axes.text(x + w / 2, y + 0.62, title, ha="center", va="center", color=INK, weight="bold", size=10.5)
        axes.text(x + w / 2, y + 0.28, about, ha="center", va="center", color=INK, size=8.5)
    for start, end in sorted(arrows()):
        (x0, y0, w0), (x1, y1, w1) = boxes[start], boxes[end]
        if y1 > y0:
            continue  # upwards: lint-imports refuses it
        left, right = max(x0, x1), min(x0 + w0, x1 + w1)
        between = [(x, w) for x, y, w in boxes.values() if y1 < y < y0]
        free = [x for x in (left + step * (right - left) / 6 for step in (3, 1, 5, 2, 4)) if left < right]
        free = [x for x in free if not any(other <= x <= other + w for other, w in between)]
        if not free:
            continue  # it would cross other boxes; those it passes stand in between in the order of imports too
        axes.add_patch(
            FancyArrowPatch(
                (free[0], y0), (free[0], y1 + HEIGHT), arrowstyle="-|>", mutation_scale=13, color=FRAME, zorder=0
            )
        )
    axes.set_xlim(-0.2, 4 * WIDTH + 3 * GAP + 0.2)
    axes.set_ylim(-8 * (HEIGHT + 2 * GAP) - 0.2, HEIGHT + 0.2)
    axes.set_axis_off()
    figure.tight_layout(pad=0.3)
    figure.savefig(ROOT / "docs" / "images" / "architecture.png", facecolor=PAPER)


if __name__ == "__main__":
    main()
