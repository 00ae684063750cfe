"""What the processes of a distributed training tell each other about their weights: counts and samples, no weights.

Where weights are sharded, a selection is one computation of all processes: each passes over its own part, and what
they exchange, a few kilobytes, is added up here. Where every process holds all weights (data parallelism), each selects
by itself, and they only compare what they chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fggp.weights.dtensor import Part
from fggp.weights.prunable import Prunable


class Processes:
    """The processes that train the same weights, as one of them sees the others.

    Args:
        groups: one for each dimension of the mesh they form; what is done in each in turn has been done by all.
        device: where what is exchanged must lie.
        held: for each process, in the mesh's order, for each weight the part that it holds.
        me: which of these processes this one is.

    Attributes:
        sharded: whether some process does not hold all of every weight.
        replicated: whether several hold the same part of one.
        owned: for each weight whether this process counts its part: of sharded ones the first that holds it does.
    """

    def __init__(
        self, groups: Sequence[Any], device: torch.device, held: Sequence[Sequence[Part]], me: int = 0
    ) -> None:
        self._groups, self._device = list(groups), device
        parts = list(zip(*held, strict=True))  # of each weight, process by process
        self._owners = [[of_weight.index(part) for part in of_weight] for of_weight in parts]
        self.replicated = any(len(set(owners)) < len(owners) for owners in self._owners)
        self.sharded = any(part.shape != part.whole for of_weight in parts for part in of_weight)
        self.owned = [not self.sharded or owners[me] == me for owners in self._owners]

    @staticmethod
    def of(model: nn.Module, weights: Sequence[Prunable]) -> Processes:
        """Those that train a model; found in its DTensors, or in the DistributedDataParallel around it or in it.

        All of them must call this together.

        Raises:
            ValueError: their weights differ in name, order or shape, or their parts do not make up the whole.
        """
        mine = [Part.of(w.parameter) for w in weights]
        meshes = [w.parameter.device_mesh for w in weights if isinstance(w.parameter, DTensor)]
        wrapped = [m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)]
        if meshes:
            # Weights may be spread over fewer dimensions than others are (FSDP2 beside tensor parallelism).
            mesh = max(meshes, key=lambda mesh: mesh.ndim)
            groups = [mesh.get_group(d) for d in range(mesh.ndim)]
            device = torch.device(mesh.device_type)
        elif wrapped:
            groups, device = [wrapped[0].process_group], weights[0].parameter.device
        else:
            return Processes([], torch.device("cpu"), [mine])
        names = [w.name for w in weights]
        told = _tell_all(groups, [(dist.get_rank(), names, mine)])
        _check_alike(told)
        return Processes(groups, device, [parts for _, _, parts in told], [r for r, *_ in told].index(dist.get_rank()))

    def sum(self, counts: Sequence[int]) -> list[int]:
        """Add up, place by place, what the owners of sharded weights counted."""
        if not self.sharded or not counts:
            return list(counts)
        table = torch.tensor(counts, dtype=torch.int64, device=self._device)
        for group in self._groups:
            dist.all_reduce(table, group=group)
        numbers: list[int] = table.tolist()
        return numbers

    def gather(self, values: Tensor) -> Tensor:
        """All processes' values, [n] of any length each, one after the other on this one's device."""
        if not self.sharded:
            return values
        found = values.to(self._device)
        for group in self._groups:
            lengths = _gather_equal(group, torch.tensor([len(found)], device=self._device)).tolist()
            padded = found.new_zeros(max(lengths))
            padded[: len(found)] = found
            rows = _gather_equal(group, padded).view(len(lengths), len(padded))
            found = torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])
        return found.to(values.device)

    def check_same(self, digests: Tensor, names: Sequence[str], what: str) -> None:
        """Compare what was derived, alike on every process, from parts that several of them hold.

        Args:
            digests: one for each weight, int64.
            names: the weights'.
            what: is compared.

        Raises:
            RuntimeError: they differ; it names the first weight, and is raised on all processes.
        """
        table = digests.to(self._device)
        for group in self._groups:
            table = _gather_equal(group, table)
        for name, owners, column in zip(names, self._owners, table.view(-1, len(names)).T.tolist(), strict=True):
            differ = [process for process, owner in enumerate(owners) if column[process] != column[owner]]
            if differ:
                raise RuntimeError(
                    f"process {differ[0]} has another {what} of {name!r} than process {owners[differ[0]]}: their "
                    f"weights or gradients are not the same, as data-parallel training must keep them"
                )


ALONE = Processes([], torch.device("cpu"), [])
"""A process that holds all weights and has nobody to tell."""


def _gather_equal(group: Any, row: Tensor) -> Tensor:
    """The rows, [n] each, of a group's processes, [processes · n]."""
    table = row.new_empty(dist.get_world_size(group) * len(row))
    dist.all_gather_into_tensor(table, row, group=group)
    return table


def _tell_all(groups: Sequence[Any], facts: list[Any]) -> list[Any]:
    for group in groups:
        told: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(told, facts, group=group)
        facts = [fact for of_process in told for fact in of_process]
    return facts


def _check_alike(told: Sequence[tuple[int, list[str], list[Part]]]) -> None:
    """Refuse processes whose weights are not the same, or whose parts of a weight do not make up the whole."""
    for (rank, names, parts), (other, other_names, other_parts) in pairwise(told):
        mine = [(name, part.whole) for name, part in zip(names, parts, strict=True)]
        theirs = [(name, part.whole) for name, part in zip(other_names, other_parts, strict=True)]
        if mine != theirs:
            differ = next(iter(sorted(set(mine) ^ set(theirs))), "their order")
            raise ValueError(f"model differs between processes {rank} and {other}, first in {differ}")
    for name, *parts in zip(told[0][1], *(parts for _, _, parts in told), strict=True):
        held = sum(torch.Size(part.shape).numel() for part in set(parts))
        if held != torch.Size(parts[0].whole).numel():
            raise ValueError(
                f"weight {name!r} is spread over other processes than the rest of the model: fggp needs one mesh, over "
                f"some or all dimensions of which every weight is spread"
            )
