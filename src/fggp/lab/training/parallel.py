"""How a network lies over ranks: on one, copied to all (DDP), or sharded over them (FSDP2); and its state as one."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fggp.lab.base.errors import UsageError
from fggp.lab.training.step import unchanged

Forward = Callable[[nn.Module], Tensor]
"""Runs a network on a few images and returns what it returns."""

# Of all parameters; a unit of FSDP2 is gathered as a whole, and each takes a collective of its own.
LARGEST_UNIT = 1 / 8
SMALLEST_UNIT = 1 / 64


class Layout:
    """A way to lay a network over ranks; this one is for a single rank.

    Attributes:
        name: as records have it.
        memory_format: of its weights.
        captured: whether its steps can be captured in a CUDA graph.
    """

    name = "single"
    memory_format = torch.channels_last
    captured = True

    def wrap(self, model: nn.Module, forward: Forward) -> nn.Module:
        """Return what to call in training in place of the model; all ranks call it with the same weights.

        Args:
            model: on its device; under FSDP2 its parameters are replaced by their shards.
            forward: tries a network, the model or what is returned, on a few images.

        Raises:
            UsageError: the network cannot be laid out like this.
        """
        return model


class Copied(Layout):
    """A copy on every rank, gradients averaged: DistributedDataParallel.

    Steps are not captured: a graph would have to hold the reductions too, for which DDP wants eleven passes on a stream
    of its own.
    """

    name = "ddp"
    memory_format = torch.channels_last
    captured = False

    def wrap(self, model: nn.Module, forward: Forward) -> nn.Module:  # noqa: D102 (inherited)
        with unchanged(model, next(model.parameters()).device):
            model.zero_grad()
            forward(model).sum().backward()  # type: ignore[no-untyped-call]
            unused = any(parameter.grad is None for parameter in model.parameters() if parameter.requires_grad)
        ddp = nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)
        # Running statistics are evened out once an epoch, not before every step. (The argument is deprecated in new
        # versions, and what takes its place is unknown to old ones.)
        ddp.broadcast_buffers = False
        with unchanged(model, next(model.parameters()).device):
            # The first pass tells DDP in which order to join gradients for all passes after it, and the order decides
            # how sums over three or more ranks are rounded: a resumed run must not begin with another one.
            model.zero_grad()
            forward(ddp).sum().backward()  # type: ignore[no-untyped-call]
        return ddp


class Sharded(Layout):
    """A shard of every weight, gradient and optimizer state on each rank: FSDP2.

    Steps are not captured: shards are gathered into memory that comes and goes. Weights lie row-major: FSDP2 takes no
    others.
    """

    name = "fsdp"
    memory_format = torch.contiguous_format
    captured = False

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def wrap(self, model: nn.Module, forward: Forward) -> nn.Module:  # noqa: D102 (inherited)
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (self.ranks,))
        try:
            for module in [*units(model, entered(model, forward)), model]:
                fully_shard(module, mesh=mesh)
        except (ValueError, NotImplementedError) as error:
            raise UsageError(f"fsdp cannot shard the model: {error}") from error
        return model


def entered(model: nn.Module, forward: Forward) -> set[nn.Module]:
    """Return the modules that a forward pass calls, the model left as it was."""
    called: set[nn.Module] = set()
    hooks = [module.register_forward_pre_hook(lambda module, _: called.add(module)) for module in model.modules()]
    try:
        with unchanged(model, next(model.parameters()).device), torch.no_grad():
            forward(model)
    finally:
        for hook in hooks:
            hook.remove()
    return called


def units(model: nn.Module, called: set[nn.Module]) -> list[nn.Module]:
    """Choose what FSDP2 gathers together: modules of a 64th to an 8th of the parameters; the rest goes with the root.

    Args:
        model: the network.
        called: modules whose forward is called (`entered`); others' weights are read from outside, as attention reads
            its output projection's, and are never gathered for themselves.
    """

    def size(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    total = size(model)

    def below(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if size(child) < SMALLEST_UNIT * total:
                continue
            fits = child in called and size(child) <= LARGEST_UNIT * total
            inner = [] if fits else list(below(child))
            yield from inner
            if not inner and child in called:
                yield child

    return list(dict.fromkeys(below(model)))  # a module that is in two places, once


def whole(state: Any, keep: bool) -> Any:
    """Gather a state's shards; all ranks call it.

    Args:
        state: nested dicts and lists.
        keep: whether this rank wants the result; it has None in place of what was sharded otherwise.

    Returns:
        The state with plain tensors on the CPU in place of DTensors.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if keep else None
    if isinstance(state, dict):
        return {name: whole(value, keep) for name, value in state.items()}
    return [whole(value, keep) for value in state] if isinstance(state, list) else state


def laid_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Lay a plain tensor out as a parameter of its shape is, in memory and over the ranks; all ranks call it."""
    if isinstance(parameter, DTensor):
        placed = value.to(parameter.device, memory_format=torch.contiguous_format)
        return distribute_tensor(placed, parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
