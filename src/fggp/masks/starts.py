"""Starting masks: dense, random with given layer densities, given by the user, or the non-zero weights of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from fggp.schedule import active_count, apportion
from fggp.scores import Score, random
from fggp.selection.chains import count_marked_each, keep_smallest
from fggp.selection.groups import by_value, in_groups, of_weights
from fggp.selection.rows import keep_rows_of_masks, rows_without_weight
from fggp.weights.dtensor import is_dtensor, local, own_part
from fggp.weights.layers import flatten
from fggp.weights.processes import ALONE, Processes
from fggp.weights.prunable import Prunable

Init = Literal["erk", "uniform", "keep"] | Mapping[str, Tensor]
"""How the starting masks are chosen; see `fggp.Pruner`."""


def starting_masks(
    weights: Sequence[Prunable],
    init: Init,
    init_sparsity: float | Sequence[tuple[Sequence[int], float]],
    seed: int,
    processes: Processes = ALONE,
) -> list[Tensor]:
    """The masks to start from: for each weight a bool tensor, True = kept, of the shape of this process's part.

    Args:
        weights: the prunable weights.
        init: how the masks are chosen.
        init_sparsity: the share of zeros, for all weights together, or for groups of them: their indices, and it.
        seed: the seed of random masks.
        processes: those that hold the weights.

    If weights are pruned in groups, random masks keep whole groups, and counts are those of groups; ``"keep"`` keeps
    the groups that have a weight other than zero. Where weights keep to a pattern, random masks do too, as far as
    their sparsity allows.

    Raises:
        ValueError: ``init`` is unknown, its masks do not fit the weights or keep a part of a group, or it leaves no
            weight in a row that weight norm divides by its norm.
    """
    if isinstance(init, Mapping):
        return _with_all_rows(weights, given_masks(weights, init), processes, "init prunes all of")
    if init == "keep":
        kept = nonzero_masks(weights, processes)
        return _with_all_rows(weights, kept, processes, "init='keep' finds only zeros in")
    densities = {"erk": erk, "uniform": uniform}.get(init)
    if densities is not None:
        groups = [(range(len(weights)), init_sparsity)] if isinstance(init_sparsity, (int, float)) else init_sparsity
        counts = [0] * len(weights)
        for members, sparsity in groups:
            own = [weights[i] for i in members]
            shapes, units = [w.parameter.shape for w in own], [w.units for w in own]
            active = active_count(sparsity, sum(units))
            most = [w.grid.most if w.grid is not None else w.units for w in own]
            caps = most if active <= sum(most) else units
            for i, count in zip(members, densities(shapes, active, units, caps), strict=True):
                counts[i] = count
        return keep_rows_of_masks(weights, random_masks(weights, counts, seed, processes), processes)
    raise ValueError(f"init={init!r} must be 'erk', 'uniform', 'keep' or a mapping from weight names to bool tensors")


def erk(
    shapes: Sequence[torch.Size], active: int, units: Sequence[int] | None = None, caps: Sequence[int] | None = None
) -> list[int]:
    """The number of active weights per layer, Erdős–Rényi-Kernel densities (Evci et al. 2020, arXiv 1911.11134).

    A layer's density is proportional to (sum of its dimensions) / (their product), so its number of active weights is
    proportional to the sum of its dimensions.

    Args:
        shapes: those of the layers.
        active: the number of active units in all layers, which are weights or groups of weights.
        units: the number of units in each layer; by default its weights.
        caps: how many of them may be active; by default all.
    """
    units = units or [s.numel() for s in shapes]
    shares = [Fraction(sum(s) * n, s.numel()) for s, n in zip(shapes, units, strict=True)]
    return apportion(active, shares, caps or units)


def uniform(
    shapes: Sequence[torch.Size], active: int, units: Sequence[int] | None = None, caps: Sequence[int] | None = None
) -> list[int]:
    """The number of active weights per layer, the same density in each; the arguments are those of `erk`."""
    units = units or [s.numel() for s in shapes]
    return apportion(active, units, caps or units)


def random_masks(
    weights: Sequence[Prunable], counts: Sequence[int], seed: int, processes: Processes = ALONE
) -> list[Tensor]:
    """A random mask for each weight with its count of active units, a function of seed and weight name alone."""
    masks = []
    for layer, count in zip(flatten(weights, owned=processes.owned or None), counts, strict=True):
        dense = [torch.ones(len(layer), dtype=torch.bool, device=layer.weight.device)]
        [marks] = keep_smallest([layer], dense, random(seed, 0), count, processes)
        masks.append(layer.layout.shaped(marks))
    return masks


_NONZERO = Score("not zero", lambda block: block.weight.ne(0).to(block.weight.dtype))


def nonzero_masks(weights: Sequence[Prunable], processes: Processes = ALONE) -> list[Tensor]:
    """The weights that are not zero, or the groups that have some; all of a tensor that `tensors_of_zeros` names."""
    layers = flatten(weights, owned=processes.owned or None)
    dense = [torch.ones(len(layer), dtype=torch.bool, device=layer.weight.device) for layer in layers]
    units, _ = in_groups(layers, dense, processes)
    valued, value = by_value(units, _NONZERO, processes)
    nonzero = of_weights(units, [value.of(unit.block(0, len(unit))) > 0 for unit in valued])
    counts = count_marked_each([layer.owned for layer in layers], nonzero, processes)
    return [
        layer.layout.shaped(m if n else torch.ones_like(m)) for layer, m, n in zip(layers, nonzero, counts, strict=True)
    ]


def tensors_of_zeros(weights: Sequence[Prunable], processes: Processes = ALONE) -> list[str]:
    """The names of the weight tensors that are zero throughout, on all processes, which call this together.

    That is how a layer is initialised, rather than pruned. ``init="keep"`` keeps all of their weights: pruned for good,
    the layer could never train.
    """
    nonzero = [local(w.parameter) != 0 for w in weights]
    counts = count_marked_each(processes.owned or [True] * len(weights), nonzero, processes)
    return [w.name for w, count in zip(weights, counts, strict=True) if not count]


def _with_all_rows(weights: Sequence[Prunable], masks: list[Tensor], processes: Processes, what: str) -> list[Tensor]:
    """The masks, if they keep a weight in every row of every direction of a weight norm.

    Raises:
        ValueError: they do not.
    """
    for name, count in rows_without_weight(weights, masks, processes).items():
        raise ValueError(
            f"{what} {count} rows of {name!r}. Weight norm divides a row by its norm, so what the model uses would be "
            f"NaN: keep a weight of each row, or leave this tensor out with exclude="
        )
    return masks


def given_masks(weights: Sequence[Prunable], masks: Mapping[str, Tensor]) -> list[Tensor]:
    """Check the user's masks and return this process's part of each.

    Args:
        weights: the weights to prune.
        masks: for each weight, by name, a bool tensor of its full shape, True = kept.

    Raises:
        ValueError: a mask is missing, belongs to no weight, or has another dtype or shape.
    """
    names = {w.name for w in weights}
    unknown, missing = sorted(set(masks) - names), sorted(names - set(masks))
    if unknown or missing:
        raise ValueError(
            f"init masks must have the names of the weights to prune: no weight is called {unknown[:4]}"
            if unknown
            else f"init masks must cover every weight to prune: {missing[:4]} have none"
        )
    for w in weights:
        mask = masks[w.name]
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != w.parameter.shape:
            got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"init mask of {w.name!r} is {got}; it must be a bool tensor {list(w.parameter.shape)}")
        check_granularity([w], [mask.full_tensor() if is_dtensor(mask) else mask], "a mask in init")
    return [own_part(w.parameter, masks[w.name]) for w in weights]


def check_granularity(weights: Sequence[Prunable], masks: Sequence[Tensor], what: str) -> None:
    """Refuse masks that keep a part of a group which is pruned as a whole.

    Args:
        weights: the weights.
        masks: for each a bool tensor of its full shape.
        what: begins the error message.

    Raises:
        ValueError: there is one.
    """
    for w, mask in zip(weights, masks, strict=True):
        if w.grid is None or w.grid.limit is not None:
            continue
        kept = mask[tuple(slice(None, None, step) for step in w.grid.steps)]
        for d, step in enumerate(w.grid.steps):
            kept = kept.repeat_interleave(step, d).narrow(d, 0, mask.shape[d])
        if not torch.equal(kept, mask):
            raise ValueError(
                f"{what} keeps a part of a group of {'×'.join(map(str, w.grid.steps))} weights of {w.name!r}: with "
                f"granularity= it must keep or prune each group as a whole"
            )
