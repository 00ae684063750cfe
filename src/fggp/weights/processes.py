"""The counts and samples that the processes of a distributed training exchange about their weights.

If weights are sharded, all processes compute one selection together: each passes over its own part, and they exchange a
few kilobytes of counts and samples. If every process holds all weights (data parallelism), each selects by itself, and
they only compare the masks that they chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fggp.weights.dtensor import Part, is_dtensor
from fggp.weights.prunable import Prunable


class Processes:
    """The processes that train the same weights, as one of them sees the others.

    Args:
        groups: one process group for each dimension of their mesh; a collective in each in turn reaches all processes.
        device: the device that tensors must be on to be exchanged.
        held: for each process, in the mesh's order, the part of each weight that it holds.
        rank: this process's index in ``held``.

    Attributes:
        sharded: whether some process holds only a part of some weight.
        replicated: whether several processes hold the same part of some weight.
        owned: for each weight, whether this process counts its part. If weights are sharded, the first process that
            holds a part counts it; otherwise every process counts everything.
        first: whether this is the first process: it counts what all of them have.
    """

    def __init__(
        self, groups: Sequence[Any], device: torch.device, held: Sequence[Sequence[Part]], rank: int = 0
    ) -> None:
        self._groups, self._device = list(groups), device
        parts_by_weight = list(zip(*held, strict=True))  # for each weight its part in each process
        self._owners = [[parts.index(part) for part in parts] for parts in parts_by_weight]
        self.replicated = any(len(set(owners)) < len(owners) for owners in self._owners)
        self.sharded = any(part.shape != part.full_shape for parts in parts_by_weight for part in parts)
        self.owned = [not self.sharded or owners[rank] == rank for owners in self._owners]
        self.first = rank == 0

    @staticmethod
    def of(model: nn.Module, weights: Sequence[Prunable]) -> Processes:
        """The processes that train a model, found by its DTensors, or by its DistributedDataParallel wrapper.

        All of them must call this together.

        Raises:
            ValueError: their weights differ in name, order or shape, or their parts do not make up the full weights.
        """
        parts = [Part.of(w.parameter) for w in weights]
        meshes = [w.parameter.device_mesh for w in weights if is_dtensor(w.parameter)]
        wrapped = [m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)]
        if meshes:
            # Some weights may use fewer dimensions of the mesh than others (FSDP2 beside tensor parallelism).
            mesh = max(meshes, key=lambda mesh: mesh.ndim)
            groups = [mesh.get_group(d) for d in range(mesh.ndim)]
            device = torch.device(mesh.device_type)
        elif wrapped:
            groups, device = [wrapped[0].process_group], weights[0].parameter.device
        else:
            return Processes([], torch.device("cpu"), [parts])
        names = [w.name for w in weights]
        gathered = _all_gather_objects(groups, [(dist.get_rank(), names, parts)])
        _check_consistent(gathered)
        ranks = [rank for rank, _, _ in gathered]
        return Processes(groups, device, [parts for _, _, parts in gathered], ranks.index(dist.get_rank()))

    def sum(self, counts: Sequence[int]) -> list[int]:
        """Sum each count over all processes; unchanged if weights are not sharded."""
        if not self.sharded or not counts:
            return list(counts)
        table = torch.tensor(counts, dtype=torch.int64, device=self._device)
        for group in self._groups:
            dist.all_reduce(table, group=group)
        numbers: list[int] = table.tolist()
        return numbers

    def any(self, flags: Sequence[Tensor]) -> list[Tensor]:
        """Flags that are set where some process's are; unchanged if weights are not sharded.

        Where the flags are on the device that exchanges them, no GPU is waited for.

        Args:
            flags: bool tensors [n], each of the same n on all processes.
        """
        if not self.sharded or not flags:
            return list(flags)
        table = torch.cat([f.to(self._device) for f in flags]).to(torch.uint8)
        for group in self._groups:
            dist.all_reduce(table, op=dist.ReduceOp.MAX, group=group)
        everywhere = torch.split(table.bool(), [len(f) for f in flags])
        return [e.to(f.device) for e, f in zip(everywhere, flags, strict=True)]

    def gather(self, values: Tensor) -> Tensor:
        """Concatenate all processes' values, [n] with a different n each; unchanged if weights are not sharded."""
        if not self.sharded:
            return values
        gathered = values.to(self._device)
        for group in self._groups:
            lengths = _all_gather(group, torch.tensor([len(gathered)], device=self._device)).tolist()
            padded = gathered.new_zeros(max(lengths))
            padded[: len(gathered)] = gathered
            rows = _all_gather(group, padded).view(len(lengths), len(padded))
            gathered = torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])
        return gathered.to(values.device)

    def check_same(self, digests: Tensor, names: Sequence[str], what: str) -> None:
        """Check that processes that hold the same part of a weight computed the same from it.

        Args:
            digests: this process's digest for each weight, int64 [weights].
            names: the weights' names.
            what: what the digests are of, for the error message.

        Raises:
            RuntimeError: they differ; raised on all processes, with the name of the first such weight.
        """
        table = digests.to(self._device)
        for group in self._groups:
            table = _all_gather(group, table)
        for name, owners, column in zip(names, self._owners, table.view(-1, len(names)).T.tolist(), strict=True):
            differ = [process for process, owner in enumerate(owners) if column[process] != column[owner]]
            if differ:
                raise RuntimeError(
                    f"process {differ[0]} has another {what} of {name!r} than process {owners[differ[0]]}: their "
                    f"weights or gradients differ, which data-parallel training must keep the same"
                )


ALONE = Processes([], torch.device("cpu"), [])
"""One process that holds all weights and exchanges nothing."""


def _all_gather(group: Any, row: Tensor) -> Tensor:
    """The rows of a group's processes, [n] each with the same n, concatenated to [processes · n]."""
    table = row.new_empty(dist.get_world_size(group) * len(row))
    dist.all_gather_into_tensor(table, row, group=group)
    return table


def _all_gather_objects(groups: Sequence[Any], objects: list[Any]) -> list[Any]:
    for group in groups:
        gathered: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(gathered, objects, group=group)
        objects = [each for of_process in gathered for each in of_process]
    return objects


def _check_consistent(gathered: Sequence[tuple[int, list[str], list[Part]]]) -> None:
    """Refuse processes whose weights differ, or whose parts of a weight do not make up the full weight.

    Args:
        gathered: of each process its rank, and the names and parts of its weights.

    Raises:
        ValueError: there are such.
    """
    for (rank, names, parts), (other, other_names, other_parts) in pairwise(gathered):
        shapes = [(name, part.full_shape) for name, part in zip(names, parts, strict=True)]
        other_shapes = [(name, part.full_shape) for name, part in zip(other_names, other_parts, strict=True)]
        if shapes != other_shapes:
            differ = next(iter(sorted(set(shapes) ^ set(other_shapes))), "the order of its weights")
            raise ValueError(f"model differs between processes {rank} and {other}, first in {differ}")
    for name, *parts in zip(gathered[0][1], *(parts for _, _, parts in gathered), strict=True):
        held = sum(torch.Size(part.shape).numel() for part in set(parts))
        if held != torch.Size(parts[0].full_shape).numel():
            raise ValueError(
                f"weight {name!r} is sharded over other processes than the rest of the model: fggp needs one mesh, "
                f"over some or all of whose dimensions every weight is sharded"
            )
