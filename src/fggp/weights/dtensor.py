"""The part of a sharded weight (DTensor: FSDP2, tensor parallelism) that this process holds, read where it lies."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_dtensor(tensor: Any) -> TypeGuard[DTensor]:
    """Whether this is a DTensor, of which this process may hold only a part."""
    # Importing the class takes a second. Until someone has imported it, there is no DTensor.
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(tensor, kind)


@dataclass(frozen=True)
class Part:
    """The part of a tensor that this process holds: all of it, or a block of a sharded one.

    Args:
        full_shape: the tensor's shape.
        shape: the part's shape.
        offset: the part's first index in each dimension of the full tensor.
    """

    full_shape: tuple[int, ...]
    shape: tuple[int, ...]
    offset: tuple[int, ...]

    @staticmethod
    def of(tensor: Tensor) -> Part:
        """The part of a tensor that this process holds."""
        full_shape = tuple(tensor.shape)
        if not is_dtensor(tensor):
            return Part(full_shape, full_shape, (0,) * len(full_shape))
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        return Part(full_shape, tuple(local(tensor).shape), tuple(offset))

    def cut_from(self, full: Tensor) -> Tensor:
        """A view of this part of a plain tensor that has the full shape."""
        for d, (start, length) in enumerate(zip(self.offset, self.shape, strict=True)):
            full = full.narrow(d, min(start, full.shape[d]), length)
        return full


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, detached, sharing its memory."""
    # Detach first: autograd would record to_local() of the parameter itself.
    detached = tensor.detach()
    return detached.to_local() if is_dtensor(detached) else detached


def local_gradient(parameter: Tensor) -> Tensor | None:
    """This process's part of a parameter's gradient, the part that matches its part of the parameter."""
    grad = parameter.grad
    if is_dtensor(grad) and is_dtensor(parameter) and grad.placements != parameter.placements:
        grad = grad.redistribute(placements=parameter.placements)  # tensor parallelism may leave partial sums
    return None if grad is None else local(grad)


def placed_as(parameter: Tensor, part: Tensor) -> Tensor:
    """Wrap this process's part as a DTensor placed like the parameter; a plain parameter's is returned unchanged."""
    if not is_dtensor(parameter):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def copy_placed_as(parameter: Tensor, part: Tensor) -> Tensor:
    """A copy of this process's part of something: a DTensor placed like the parameter, or a CPU tensor."""
    return placed_as(parameter, part.clone()) if is_dtensor(parameter) else part.to("cpu", copy=True)


def own_part(parameter: Tensor, given: Tensor) -> Tensor:
    """This process's part of a tensor of the parameter's shape: a full plain tensor, or a DTensor of any placement.

    If a DTensor's placement differs from the parameter's, all processes must call this together.
    """
    if is_dtensor(given):
        if (
            is_dtensor(parameter)
            and given.device_mesh == parameter.device_mesh
            and given.placements == parameter.placements
        ):
            return local(given)
        given = given.full_tensor()
    return Part.of(parameter).cut_from(given)


def is_partial_sum(tensor: Any) -> bool:
    """Whether this is a DTensor whose processes hold summands of the tensor instead of blocks."""
    return is_dtensor(tensor) and any(p.is_partial() for p in tensor.placements)


def is_gathered_for_forward(weight: Tensor, current: Tensor | None) -> bool:
    """Whether ``current`` is the weight as FSDP2 gathered it for a forward pass, in its place until the backward pass.

    Args:
        weight: the weight that the optimizer holds.
        current: the parameter that the model holds in its place.
    """
    if not is_dtensor(weight) or not isinstance(current, torch.nn.Parameter) or current.shape != weight.shape:
        return False
    # With tensor parallelism beside FSDP2, the gathered weight is still sharded, over fewer dimensions of the mesh.
    return not is_dtensor(current) or current.device_mesh.ndim < weight.device_mesh.ndim
