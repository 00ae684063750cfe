"""Weights of which every process holds a part (DTensor: FSDP2, tensor parallelism): which part, and read as it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


@dataclass(frozen=True)
class Part:
    """The part of a tensor that this process holds: all of it, or a block of a sharded one.

    Args:
        whole: the tensor's shape.
        shape: the part's shape.
        offset: the part's first index in each dimension of the whole.
    """

    whole: tuple[int, ...]
    shape: tuple[int, ...]
    offset: tuple[int, ...]

    @staticmethod
    def of(tensor: Tensor) -> Part:
        """The part of a tensor that this process holds."""
        whole = tuple(tensor.shape)
        if not isinstance(tensor, DTensor):
            return Part(whole, whole, (0,) * len(whole))
        _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        return Part(whole, tuple(local(tensor).shape), tuple(offset))

    def cut_from(self, whole: Tensor) -> Tensor:
        """This part of a plain tensor of the whole's shape, a view."""
        for d, (start, length) in enumerate(zip(self.offset, self.shape, strict=True)):
            whole = whole.narrow(d, min(start, whole.shape[d]), length)
        return whole


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, detached, sharing its memory."""
    # Not of the parameter itself: autograd would record that.
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def local_gradient(parameter: Tensor) -> Tensor | None:
    """What this process holds of a parameter's gradient, laid over the processes as the parameter is."""
    grad = parameter.grad
    if isinstance(grad, DTensor) and isinstance(parameter, DTensor) and grad.placements != parameter.placements:
        grad = grad.redistribute(placements=parameter.placements)  # tensor parallelism may leave sums open
    return None if grad is None else local(grad)


def spread_as(parameter: Tensor, part: Tensor) -> Tensor:
    """The tensor of which every process holds such a part as it does of the parameter: plain where that is."""
    if not isinstance(parameter, DTensor):
        return part
    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def own_part(parameter: Tensor, given: Tensor) -> Tensor:
    """What this process holds of a tensor of the parameter's shape: a plain whole one, or a DTensor laid anyhow.

    Where a DTensor is laid otherwise than the parameter is, all processes must call this together.
    """
    if isinstance(given, DTensor):
        if (
            isinstance(parameter, DTensor)
            and given.device_mesh == parameter.device_mesh
            and given.placements == parameter.placements
        ):
            return local(given)
        given = given.full_tensor()
    return Part.of(parameter).cut_from(given)


def is_open_sum(tensor: Any) -> bool:
    """Whether a DTensor's processes hold summands of it, not parts."""
    return isinstance(tensor, DTensor) and any(p.is_partial() for p in tensor.placements)


def unsharded_for_now(weight: Tensor, now: Tensor | None) -> bool:
    """Whether a weight's place is taken by what FSDP2 gathered for a forward pass, until the next backward pass.

    Args:
        weight: the weight that the optimizer holds.
        now: what is in its place in the model.
    """
    if not isinstance(weight, DTensor) or not isinstance(now, torch.nn.Parameter) or now.shape != weight.shape:
        return False
    # With tensor parallelism beside FSDP2, what is gathered is sharded still, over fewer dimensions of the mesh.
    return not isinstance(now, DTensor) or now.device_mesh.ndim < weight.device_mesh.ndim
