"""The gradients of a batch, computed kernel by kernel or, on a GPU, replayed from a CUDA graph."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Passes before a capture, in which libraries choose algorithms and allocate; PyTorch's documentation uses 3."""

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps images and labels of a batch to their mean loss, [], and the number of hits, [], both on the device."""


class Step(Protocol):
    """Computes gradients; the caller makes the optimizer's step, in which the pruner acts."""

    name: str

    def __call__(self, images: Tensor, labels: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Replace the parameters' gradients by those of the batch.

        Args:
            images, labels: the batch, or this rank's part of it.
            weight: the part's share of the batch, times the number of ranks: 1 if all parts are equal. The average over
                ranks of gradients of losses with these weights is the gradient of the batch's mean loss.

        Returns:
            Mean loss (unweighted) and hits, [], on the device; valid until the next call.
        """
        ...


class EagerStep:
    """Forward and backward pass as PyTorch runs them.

    Args:
        model: holds the parameters.
        loss: runs the model.
    """

    name = "eager"

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = model, loss

    def __call__(self, images: Tensor, labels: Tensor, weight: float = 1.0) -> tuple[Tensor, Tensor]:
        """See `Step`."""
        self.model.zero_grad()
        loss, hits = self.loss(images, labels)
        (loss if weight == 1 else weight * loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), hits


@dataclass(frozen=True)
class Captured:
    """A forward and backward pass that can be replayed.

    Args:
        images, labels: buffers for a batch.
        loss, hits: buffers of its results.
        gradients: buffers of the parameters' gradients; None for parameters that have none.
        replay: runs both passes.
    """

    images: Tensor
    labels: Tensor
    loss: Tensor
    hits: Tensor
    gradients: list[Tensor | None]
    replay: Callable[[], None]


class CapturedStep:
    """The kernels of `EagerStep`, launched all at once: a CUDA graph for each size of batch.

    Python needs longer to launch kernels one by one than the GPU needs to run them. Batches are copied into the graph's
    images and labels, and the parameters get the graph's gradients. A capture changes neither buffers (batch norm's
    running statistics) nor gradients nor random number generators.

    If a model cannot be captured, because something in it makes the host wait for the GPU, its steps are eager, with
    one warning.

    Args:
        model: holds the parameters; it and the loss must run the same operations on every batch of a size.
        loss: runs the model.
    """

    name = "captured"

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model = model
        self.eager = EagerStep(model, loss)
        self._by_size: dict[torch.Size, Captured] = {}
        self._latest: Captured | None = None

    def __call__(self, images: Tensor, labels: Tensor, weight: float = 1.0) -> tuple[Tensor, Tensor]:
        """See `Step`."""
        if self.name == "eager" or weight != 1:  # graphs are of whole batches
            self._latest = None  # the parameters no longer have a graph's gradients
            return self.eager(images, labels, weight)
        captured = self._by_size.get(images.shape)
        if captured is None:
            try:
                captured = self._by_size[images.shape] = capture(self.model, self.eager, images, labels)
            except RuntimeError as error:
                self.name = "eager"
                self._by_size.clear()
                reason = str(error).partition("\n")[0]
                warnings.warn(f"the step is not captured, which is slower: {reason}", RuntimeWarning, stacklevel=3)
                return self.eager(images, labels)
            self._latest = None
        captured.images.copy_(images)
        captured.labels.copy_(labels)
        if captured is not self._latest:
            # Each graph writes its own gradients, so the parameters must hold those of the one that runs.
            for parameter, gradient in zip(self.model.parameters(), captured.gradients, strict=True):
                parameter.grad = gradient
            self._latest = captured
        captured.replay()
        return captured.loss, captured.hits


def capture(model: nn.Module, step: EagerStep, images: Tensor, labels: Tensor) -> Captured:
    """Capture a step on batches of this size in a CUDA graph.

    Raises:
        RuntimeError: something in it makes the host wait for the GPU, or cannot be captured for another reason.
    """
    images, labels = images.clone(), labels.clone()
    graph = torch.cuda.CUDAGraph()
    with unchanged(model, images.device):
        side = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step(images, labels)
            with no_waiting():  # find it here: an error in the capture spoils it beyond repair
                step(images, labels)
        torch.cuda.current_stream(images.device).wait_stream(side)
        model.zero_grad()  # otherwise the graph would add to these gradients
        with torch.cuda.graph(graph):
            loss, hits = step(images, labels)
        gradients = [parameter.grad for parameter in model.parameters()]
    return Captured(images, labels, loss, hits, gradients, graph.replay)


@contextmanager
def unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore buffers, gradients and the random number generators of CPU and device on exit."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    on_cpu = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        if on_device is not None:
            torch.cuda.synchronize(device)  # other streams may still use the buffers
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        torch.set_rng_state(on_cpu)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise a RuntimeError when the host waits for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that it does not detect everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
