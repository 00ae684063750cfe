"""One prunable weight: its name, its parameter, and the modules that hold it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fggp.weights.dtensor import is_dtensor, is_gathered_for_forward
from fggp.weights.grid import Grid


@dataclass
class Prunable:
    """A weight to be pruned.

    Args:
        name: its name in the plain model, without prefixes of wrappers; the first of its names if it is tied.
        parameter: the weight itself.
        owners: (module, attribute, full name) of every place that holds it; several if it is tied.
        matrices: how many matrices it stacks along dimension 0: the number of experts for a weight of experts, else 1.
            A weight [n·a, b] of n experts stacks n matrices [a, b].
        norm_dim: the dimension whose rows weight norm divides by their norms, if this is the direction v of a weight
            norm: row i is all of v at index i of that dimension. −1: all of v is one row. None: this is no direction.
        grid: the groups in which it is pruned, or whose patterns it keeps to; None: single weights, without any.
    """

    name: str
    parameter: nn.Parameter
    owners: list[tuple[nn.Module, str, str]]
    matrices: int = 1
    norm_dim: int | None = None
    grid: Grid | None = None

    @property
    def units(self) -> int:
        """How many units it has that are pruned as one: groups, or single weights."""
        return self.parameter.numel() if self.grid is None else self.grid.units

    @property
    def rows(self) -> int | None:
        """The number of rows of the direction of a weight norm; None if this is no direction."""
        if self.norm_dim is None:
            return None
        return 1 if self.norm_dim == -1 else self.parameter.shape[self.norm_dim]

    @property
    def rows_are_cut(self) -> bool:
        """Whether this is the direction of a weight norm and some process holds a part of a row."""
        if self.norm_dim is None or not is_dtensor(self.parameter):
            return False
        mesh = self.parameter.device_mesh
        placed = enumerate(self.parameter.placements)
        # Not isinstance(p, Shard): FSDP2 beside tensor parallelism has a kind of its own.
        dims = [p.dim for i, p in placed if hasattr(p, "dim") and mesh.size(i) > 1]
        return any(dim != self.norm_dim for dim in dims)

    def current(self) -> nn.Parameter | None:
        """The parameter that the model holds in this one's place now.

        Returns:
            None if a place is empty, or if places that were tied hold different parameters.
        """
        module, attribute, _ = self.owners[0]
        first = module._parameters.get(attribute)
        if any(module._parameters.get(attribute) is not first for module, attribute, _ in self.owners[1:]):
            return None
        if is_gathered_for_forward(self.parameter, first):
            return self.parameter
        return first
