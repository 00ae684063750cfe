"""Draw the pictures of docs/concepts.md: what a Pruner really does to small layers whose numbers are chosen here."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn

import fggp
from fggp.methods import Update, candidates
from fggp.schedule import active_count

IMAGES = Path(__file__).parents[1] / "docs" / "images"
INK, KEPT, PRUNED, SPARED = "#1f2933", "#3b6fb6", "#d1495b", "#9aa5b1"
UPDATES = 31


def pruned(weight: Tensor, gradient: Tensor, sparsity: float, **settings: object) -> Tensor:
    """Return which weights of a linear layer [outputs, inputs] one mask update prunes."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    pruner = fggp.Pruner(layer, optimizer, sparsity, begin=0, end=1, every=1, **settings)
    layer.weight.grad = gradient.clone()
    optimizer.step()
    return ~pruner.masks["weight"]


def random_layer(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Return normal weights and gradients, independent of each other."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(outputs, inputs, generator=generator)
    return weight, torch.randn(outputs, inputs, generator=generator)


def gradient_first() -> Figure:
    """Each weight of a layer by its gradient and its magnitude; GMP and FGGP prune a fifth."""
    weight, gradient = random_layer(20, 25)
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.9), sharey=True, layout="constrained")
    for axis, method, title in (
        (axes[0], fggp.GMP(), "GMP: the smallest weights"),
        (axes[1], fggp.FGGP(rate=0.5), "FGGP: the smallest weights\nof the half with the smallest gradients"),
    ):
        gone = pruned(weight, gradient, 0.2, method=method)
        for which, colour, marker, label in ((~gone, KEPT, "o", "kept"), (gone, PRUNED, "x", "pruned")):
            points = (gradient[which].abs(), weight[which].abs())
            axis.scatter(*points, s=14, color=colour, marker=marker, linewidths=1.1, label=label)
        axis.set(title=title, xlabel="size of the gradient |g|", xlim=(0, 3), ylim=(0, 3))
    half = gradient.abs().median()
    axes[1].axvline(half, color=INK, linewidth=1, linestyle="--")
    axes[1].annotate("spared by step 1", (half + 0.05, 2.8), fontsize=9, color=INK)
    axes[0].set_ylabel("size of the weight |θ|")
    axes[0].legend(loc="upper right", fontsize=9)
    return figure


def schedule() -> Figure:
    """The sparsity step by step, and how many weights each update's two steps take."""
    total, rate = 1_000_000, 0.5
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    updates = range(1, UPDATES + 1)
    for curve, colour, name in ((fggp.cubic, KEPT, "cubic (the default)"), (fggp.linear, SPARED, "linear")):
        plan = fggp.Schedule(sparsity=0.95, begin=0, end=UPDATES, every=1, curve=curve)
        shares = [100 * plan.sparsity_at(update) for update in (0, *updates)]
        left.step((0, *updates, 62), [*shares, shares[-1]], where="post", color=colour, label=name)
    left.axvline(UPDATES, color=INK, linewidth=1, linestyle=":")
    left.annotate("end: the rest of training\nis for the kept weights", (UPDATES + 1.5, 30), fontsize=9, color=INK)
    left.set(title="The schedule", xlabel="mask update", ylabel="sparsity, %", ylim=(0, 100), xlim=(0, 62))
    left.legend(loc="lower right", fontsize=9)

    plan = fggp.Schedule(sparsity=0.95, begin=0, end=UPDATES, every=1)
    active = [active_count(plan.sparsity_at(update), total) for update in (0, *updates)]
    now = [
        Update(step=u, active=active[u - 1], excess=active[u - 1] - active[u], progress=plan.progress(u), seed=0)
        for u in updates
    ]
    right.plot(updates, [u.active for u in now], color=SPARED, label="active weights")
    right.plot(updates, [candidates(rate, u) for u in now], color=KEPT, label="step 1 picks")
    right.plot(updates, [max(u.excess, 1) for u in now], color=PRUNED, label="step 2 picks: pruned")
    right.set(title="One million weights", xlabel="mask update", yscale="log", xlim=(1, UPDATES), ylim=(10, 2e6))
    right.legend(loc="lower left", fontsize=9)
    return figure


def ties() -> Figure:
    """Ten weights, some of whose gradients are zero; FGGP picks six and prunes three."""
    gradient = torch.tensor([[0.0, 0.3, 0.0, 0.1, 0.0, 0.7, 0.0, 0.2, 0.9, 0.0]])
    weight = torch.tensor([[0.5, -0.1, -0.2, 0.4, 0.2, 0.1, 0.8, -0.6, 0.3, -0.2]])
    count = weight.numel()
    ranks = sorted(range(count), key=lambda i: (abs(gradient[0, i].item()), abs(weight[0, i].item()), i))
    gone = pruned(weight, gradient, 0.3, method=fggp.FGGP(rate=0.6))[0]
    picked = set(ranks[:6])
    rows = [
        ("|g|", [f"{value:g}" for value in gradient[0].abs().mul(10).round().div(10).tolist()]),
        ("|θ|", [f"{value:.1f}" for value in weight[0].abs().tolist()]),
        ("position", [str(i) for i in range(count)]),
        ("rank by |g|, |θ|, position", [str(ranks.index(i) + 1) for i in range(count)]),
        ("after step 1 (six)", ["picked" if i in picked else "spared" for i in range(count)]),
        ("after step 2 (three)", ["pruned" if gone[i] else "kept" for i in range(count)]),
    ]
    figure, axis = plt.subplots(figsize=(8.4, 2.7), layout="constrained")
    colours = {"picked": "#fde7ea", "pruned": "#f3a5af", "spared": "#e5e9ee", "kept": "#cfe0f5"}
    table = axis.table(
        cellText=[cells for _, cells in rows],
        rowLabels=[label for label, _ in rows],
        cellColours=[[colours.get(cell, "white") for cell in cells] for _, cells in rows],
        cellLoc="center",
        loc="center",
        bbox=(0.24, 0, 0.76, 1),
    )
    table.auto_set_font_size(False)
    table.set_fontsize(9.5)
    for (_, column), cell in table.get_celld().items():
        cell.set_edgecolor("white" if column < 0 else SPARED)
    axis.axis("off")
    return figure


def groups() -> Figure:
    """The masks of one layer under each granularity, half of the weights pruned."""
    weight, gradient = random_layer(12, 24)
    figure, axes = plt.subplots(1, 4, figsize=(8.4, 2.1), layout="constrained")
    for axis, granularity, title in zip(
        axes,
        (None, fggp.Blocks(4), fggp.Rows(), fggp.NM(2, 4)),
        ("single weights", "Blocks(4)", "Rows()", "NM(2, 4)"),
        strict=True,
    ):
        show(axis, ~pruned(weight, gradient, 0.5, granularity=granularity))
        axis.set_title(title, fontsize=10)
    axes[0].set(xlabel="input channel", ylabel="output")
    return figure


def show(axis: Axes, kept: Tensor) -> None:
    """Draw a mask [outputs, inputs] as cells."""
    axis.pcolormesh(kept.flip(0), cmap=ListedColormap(["#eef1f5", KEPT]), edgecolors="white", linewidth=0.6)
    axis.set(xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(False)


def main() -> None:
    """Write the pictures into docs/images."""
    plt.rcParams.update({"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": SPARED})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11})
    for draw in (gradient_first, schedule, ties, groups):
        figure = draw()
        figure.savefig(IMAGES / f"concept-{draw.__name__.replace('_', '-')}.png", dpi=140, bbox_inches="tight")
        plt.close(figure)


if __name__ == "__main__":
    main()
