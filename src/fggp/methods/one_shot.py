"""Methods of pruning at initialisation: they choose the masks once, when the Pruner is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fggp.masks import starts
from fggp.schedule import active_count
from fggp.scores import Score, largest
from fggp.selection.chains import keep_smallest
from fggp.selection.rows import keep_rows_of_masks
from fggp.weights.layers import flatten
from fggp.weights.prunable import Prunable

LossFunction = Callable[[Any, Tensor], Tensor]
"""Maps the model's output and the targets to a scalar."""


class OneShot(ABC):
    """A method that chooses the masks once, when the Pruner is made. It takes no ``begin``, ``end`` and ``every``."""

    name: ClassVar[str]
    """The method's name in tables, files and on the command line."""

    @abstractmethod
    def masks(self, model: nn.Module, weights: Sequence[Prunable], sparsity: float, seed: int) -> list[Tensor]:
        """Choose for each weight a mask, a bool tensor of its shape, without changing model or global generators."""

    def settings(self) -> dict[str, Any]:
        """The method's hyper-parameters by name."""
        return {}


@dataclass(frozen=True)
class StaticERK(OneShot):
    """A random mask with Erdős–Rényi-Kernel layer densities: the baseline that dynamic methods must beat."""

    name: ClassVar[str] = "erk-static"

    def masks(self, model: nn.Module, weights: Sequence[Prunable], sparsity: float, seed: int) -> list[Tensor]:  # noqa: D102
        return starts.starting_masks(weights, "erk", sparsity, seed)


@dataclass(frozen=True, eq=False)
class SNIP(OneShot):
    """Single-shot network pruning (Lee et al. 2019, arXiv 1810.02340): keep the largest |θ·g| of one batch.

    Args:
        loss_fn: maps the model's output and the targets to a scalar.
        batch: inputs and targets, on the model's device.
    """

    name: ClassVar[str] = "snip"
    loss_fn: LossFunction
    batch: tuple[Any, Tensor] = field(repr=False)

    def masks(self, model: nn.Module, weights: Sequence[Prunable], sparsity: float, seed: int) -> list[Tensor]:  # noqa: D102
        with _with_substitutes(model, weights, seed) as (run, theta):
            inputs, targets = self.batch
            g = _gradients(self.loss_fn(run(inputs), targets), theta)
            saliency = [(t * g_t).detach().abs() for t, g_t in zip(theta, g, strict=True)]
        return _keep_largest(weights, saliency, sparsity)


@dataclass(frozen=True, eq=False)
class GraSP(OneShot):
    """Gradient signal preservation (Wang et al. 2020, arXiv 2002.07376): keep the smallest −θ·Hg of one batch.

    H is the loss's Hessian and g its gradient. The kept weights are those whose removal would shrink
    the gradient's norm most.

    Args:
        loss_fn: maps the model's output and the targets to a scalar.
        batch: inputs and targets, on the model's device.
    """

    name: ClassVar[str] = "grasp"
    loss_fn: LossFunction
    batch: tuple[Any, Tensor] = field(repr=False)

    def masks(self, model: nn.Module, weights: Sequence[Prunable], sparsity: float, seed: int) -> list[Tensor]:  # noqa: D102
        with _with_substitutes(model, weights, seed) as (run, theta):
            inputs, targets = self.batch
            g = _gradients(self.loss_fn(run(inputs), targets), theta, create_graph=True)
            # The gradient of g·g′, with g′ held constant, is Hg.
            hg = _gradients(sum((g_t * g_t.detach()).sum() for g_t in g), theta)
            gain = [(t * hg_t).detach() for t, hg_t in zip(theta, hg, strict=True)]
        return _keep_largest(weights, gain, sparsity)


@dataclass(frozen=True)
class SynFlow(OneShot):
    """Iterative synaptic flow pruning (Tanaka et al. 2020, arXiv 2006.05467): uses no data and avoids layer collapse.

    Each round keeps the largest |θ·∂R/∂θ|. R is the sum of the outputs, for an input of ones, of the network with
    absolute weights. The density falls exponentially over the rounds. Flows span many orders of magnitude, so they
    are computed in float64.

    Args:
        input_shape: the shape of one input, without the batch dimension.
        rounds: the number of rounds.
    """

    name: ClassVar[str] = "synflow"
    input_shape: tuple[int, ...]
    rounds: int = 100

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds!r} must be at least 1")

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {"input_shape": list(self.input_shape), "rounds": self.rounds}

    def masks(self, model: nn.Module, weights: Sequence[Prunable], sparsity: float, seed: int) -> list[Tensor]:  # noqa: D102
        masks = [torch.ones_like(w.parameter, dtype=torch.bool) for w in weights]
        ones = torch.ones((1, *self.input_shape), dtype=torch.float64, device=weights[0].parameter.device)
        for done in range(1, self.rounds + 1):
            with _with_substitutes(model, weights, seed, synflow_masks=masks) as (run, theta):
                g = _gradients(run(ones).sum(), theta)
                flow = [(t * g_t).detach().abs() for t, g_t in zip(theta, g, strict=True)]
            density = (1 - sparsity) ** (done / self.rounds)
            masks = _keep_largest(weights, flow, sparsity if done == self.rounds else 1 - density, masks)
            masks = keep_rows_of_masks(weights, masks)  # of weight norm: an empty row would make the next flow NaN
        return masks


Run = Callable[[Any], Any]


@contextmanager
def _with_substitutes(
    model: nn.Module, weights: Sequence[Prunable], seed: int, synflow_masks: Sequence[Tensor] | None = None
) -> Iterator[tuple[Run, list[Tensor]]]:
    """Run the model on substitutes for its parameters and copies of its buffers, without changing it.

    Args:
        model: the model.
        weights: the weights to differentiate by.
        seed: the seed of random layers such as dropout.
        synflow_masks: masks of the weights, for SynFlow, which needs a linear network. If given, the parameters are
            absolute, masked and in float64, and the model runs in evaluation mode.

    Yields:
        A function from the model's inputs to its output, and the weights' substitutes.
    """
    model = getattr(model, "_orig_mod", model)  # a compiled model would be recompiled for the substitutes
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers())
    modes = {module: module.training for module in model.modules()}
    masks = {} if synflow_masks is None else {id(w.parameter): m for w, m in zip(weights, synflow_masks, strict=True)}

    def substitute_for(parameter: Tensor) -> Tensor:
        value = parameter.detach()
        if synflow_masks is not None and value.is_floating_point():
            value = value.abs().double()
            value = value * masks[id(parameter)] if id(parameter) in masks else value
        return value.requires_grad_(parameter.requires_grad)

    # By id: a tied weight has one substitute under all its names.
    substitutes = {id(p): substitute_for(p) for p in parameters.values()}
    copies = {
        n: b.detach().abs().double() if synflow_masks is not None and b.is_floating_point() else b.detach().clone()
        for n, b in buffers.items()
    }
    state = {**{n: substitutes[id(p)] for n, p in parameters.items()}, **copies}
    devices = [d for d in {p.device for p in parameters.values()} if d.type == "cuda"]
    try:
        if synflow_masks is not None:
            model.eval()
        with torch.enable_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            theta = [substitutes[id(w.parameter)] for w in weights]
            yield lambda inputs: functional_call(model, state, (inputs,)), theta
    finally:
        for module, training in modes.items():
            module.training = training


def _gradients(value: Any, theta: Sequence[Tensor], create_graph: bool = False) -> list[Tensor]:
    """The gradient of a scalar by each tensor; zero for a tensor that it does not depend on."""
    found = torch.autograd.grad(value, list(theta), create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(theta, found, strict=True)]


def _keep_largest(
    weights: Sequence[Prunable], values: Sequence[Tensor], sparsity: float, candidates: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Masks that keep the weights, or groups, with the largest values, in the number that ``sparsity`` stands for.

    Args:
        weights: the weights.
        values: for each weight a tensor of its shape.
        sparsity: the share of zeros over all weights, or of pruned groups.
        candidates: masks of the weights to choose from; all by default.

    Raises:
        ValueError: a value is not finite.
    """
    if not all(v.isfinite().all() for v in values):
        raise ValueError(
            "some scores are infinite or NaN for this model and input: check the model's output, and the loss and its "
            "gradient if the method takes a loss_fn"
        )
    layers = flatten(weights)
    values_by_name = {layer.name: layer.layout.flat(v) for layer, v in zip(layers, values, strict=True)}
    score = Score("one shot", lambda block: values_by_name[block.layer.name][block.where])
    marks = [
        torch.ones(len(layer), dtype=torch.bool, device=layer.weight.device)
        if candidates is None
        else layer.layout.flat(candidates[i])
        for i, layer in enumerate(layers)
    ]
    count = active_count(sparsity, sum(w.units for w in weights))
    kept = keep_smallest(layers, marks, largest(score), count)
    return [layer.layout.shaped(m) for layer, m in zip(layers, kept, strict=True)]
