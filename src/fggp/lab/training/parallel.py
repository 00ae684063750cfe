"""A network on several ranks: copied to each (DDP) or sharded over them (FSDP2), and its state as plain tensors."""

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
"""Runs a network on a few images and returns its output."""

LARGEST_UNIT = 1 / 8
"""Of all parameters; FSDP2 gathers a whole unit at once."""
SMALLEST_UNIT = 1 / 64
"""Likewise; each unit takes a collective."""


def copy_to_ranks(model: nn.Module, forward: Forward) -> nn.Module:
    """Wrap a network for training with a copy on every rank and averaged gradients: DistributedDataParallel.

    Its steps cannot be captured in a CUDA graph as they are: the graph would have to hold the reductions too, for which
    DDP needs eleven passes on a stream of its own.

    Args:
        model: on its device, equal on all ranks; all ranks call this.
        forward: tries a network, the model or the wrapper, on a few images.
    """
    with unchanged(model, next(model.parameters()).device):
        model.zero_grad()
        forward(model).sum().backward()  # type: ignore[no-untyped-call]
        unused = any(parameter.grad is None for parameter in model.parameters() if parameter.requires_grad)
    ddp = nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)
    # Running statistics are evened out once an epoch, not before every step. (New versions deprecate the argument, and
    # old ones do not know its successor.)
    ddp.broadcast_buffers = False
    with unchanged(model, next(model.parameters()).device):
        # In the first pass DDP decides in which order to join gradients, and the order decides how sums over three or
        # more ranks are rounded: a resumed run must not begin with another pass than an unbroken one.
        model.zero_grad()
        forward(ddp).sum().backward()  # type: ignore[no-untyped-call]
    return ddp


def shard_over_ranks(model: nn.Module, forward: Forward, ranks: int) -> nn.Module:
    """Replace a network's parameters by their shards, one on each rank: FSDP2.

    Its steps cannot be captured: shards are gathered into memory that is freed again. It needs row-major weights.

    Args:
        model: on its device, equal on all ranks; all ranks call this.
        forward: tries the network on a few images.
        ranks: their number.

    Raises:
        UsageError: FSDP2 cannot shard the network.
    """
    mesh = init_device_mesh(next(model.parameters()).device.type, (ranks,))
    try:
        for module in [*units(model, called_modules(model, forward)), model]:
            fully_shard(module, mesh=mesh)
    except (ValueError, NotImplementedError) as error:
        raise UsageError(f"fsdp cannot shard the model: {error}") from error
    return model


def called_modules(model: nn.Module, forward: Forward) -> set[nn.Module]:
    """Return the modules that a forward pass calls; the model does not change."""
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
    """Choose what FSDP2 gathers together: modules of a 64th to an 8th of the parameters, and the root for all others.

    Args:
        model: the network.
        called: modules whose forward is called (`called_modules`). The weights of others are read from outside, as
            attention reads those of its output projection, and are never gathered by themselves.
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


def gathered(state: Any, keep: bool) -> Any:
    """Gather a state's shards; all ranks call it.

    Args:
        state: nested dicts and lists.
        keep: whether this rank wants the result; if not, it gets None in place of sharded tensors.

    Returns:
        The state with plain tensors on the CPU in place of DTensors.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if keep else None
    if isinstance(state, dict):
        return {name: gathered(value, keep) for name, value in state.items()}
    return [gathered(value, keep) for value in state] if isinstance(state, list) else state


def distributed_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return a plain tensor with a parameter's memory format, sharded as the parameter is; all ranks call it."""
    if isinstance(parameter, DTensor):
        placed = value.to(parameter.device, memory_format=torch.contiguous_format)
        return distribute_tensor(placed, parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
