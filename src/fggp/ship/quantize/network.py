"""`fggp.quantize`: a network whose weights and activations are whole numbers of 8 bits."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from fggp import registry
from fggp.ship.graph.capture import normalise_example
from fggp.ship.graph.check import check_inputs
from fggp.ship.graph.module import GraphModule
from fggp.ship.graph.operations import Conv2d, Graph, Linear, Op, QuantizedProduct
from fggp.ship.graph.simplify import simplify
from fggp.ship.network.describe import captured
from fggp.ship.quantize.ranges import calibrated
from fggp.ship.quantize.rewrite import Choice, place, rewritten


class Quantized(GraphModule):
    """A network of whole numbers, which `quantize` returns. Print it to see which layers these are.

    It is a module for inference: `fggp.compile` makes it fast and writes network files, `fggp.save` stores its state.
    Called as it is, it computes the same with PyTorch, slowly. Gradients do not flow through it.
    """

    def __init__(self, graph: Graph, name: str) -> None:
        super().__init__(graph)
        self._name = name
        self.eval()

    def __repr__(self) -> str:
        products = [op for op in self.captured_graph.ops if isinstance(op, (Conv2d, Linear, QuantizedProduct))]
        floats = [place(op) for op in products if not isinstance(op, QuantizedProduct)]
        weights = sum(op.weight.numel() for op in products)
        zeros = sum(int((op.weight == 0).sum()) for op in products)
        rest = f"; in float32: {', '.join(floats)}" if floats else ""
        return (
            f"{self._name} quantised by fggp: {len(products) - len(floats)} of {len(products)} convolutions and linear "
            f"layers in int8, {zeros / max(1, weights):.1%} of their weights are zero{rest}"
        )


def quantize(
    model: nn.Module, batches: Iterable[Any], *, calibration: str = "mse", exclude: Sequence[str] = ()
) -> Quantized:
    """Make a trained network one of whole numbers of 8 bits, without training. Zero weights stay zero.

    Batch norms are folded first. Each output channel of a convolution or linear layer gets a scale, and its weights are
    rounded to −127 … 127 times it. Activations are rounded to 0 … 255, with a scale and a zero of their own for each
    tensor, which the batches decide. Sums, maximum pools, concatenations and the last mean between them run on whole
    numbers too; all else stays in float32, as does what the network returns. The first and the last layer are quantised
    like the others.

    Args:
        model: on the CPU; it is not changed.
        batches: some batches of what the model takes, as `fggp.compile` takes an example: tensors, or tuples of
            positional arguments, or dicts. A few hundred images suffice. All are kept in memory meanwhile.
        calibration: "mse" clips the range of an activation where that makes its squared error less; "minmax" does not.
        exclude: layers that stay in float32: patterns of their names, such as "features.0" or "classifier*".

    Returns:
        The network as a module.

    Raises:
        TypeError, ValueError: an argument is wrong; the message says what would be right.
        CaptureError: the model cannot be captured (`fggp.compile` says what that takes).

    Warns:
        UserWarning: the model's pruning did not reach its target, or pruned weights are not zero.

    Example:
        >>> quantized = fggp.quantize(model, [x for x, _ in itertools.islice(loader, 8)])
        >>> fast = fggp.compile(quantized, torch.randn(1, 3, 32, 32))
        >>> fast.save("net.fggp")
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r:.80} must be a torch.nn.Module: quantize(model, batches)")
    if isinstance(model, GraphModule):
        raise TypeError("model is quantised already; give the network that it was made of")
    if calibration not in ("mse", "minmax"):
        raise ValueError(f'calibration={calibration!r} must be "mse" or "minmax"')
    if isinstance(exclude, str):
        raise TypeError(f"exclude={exclude!r} must be a sequence of patterns: exclude=[{exclude!r}]")
    if isinstance(batches, Tensor):
        raise TypeError("batches is a tensor; it must be a sequence of batches: [x]")
    examples = [normalise_example(batch) for batch in batches]
    if not examples:
        raise ValueError("batches is empty; it must have one batch or more of what the model takes")
    for message in registry.complaints(model):
        warnings.warn(f"fggp.quantize: {message}", UserWarning, stacklevel=2)
    args, kwargs = examples[0]
    graph = simplify(captured(model, args, kwargs))
    choice = Choice(graph, _excluded(graph, exclude))
    if not choice.groups:
        raise ValueError("the model has no convolution or linear layer that could be quantised")
    _refuse_infinite(op for op in graph.ops if op in choice.whole)
    inputs = [_inputs(graph, example, i) for i, example in enumerate(examples)]
    of = calibrated(graph, inputs, choice.groups, clip=calibration == "mse")
    return Quantized(rewritten(graph, choice, of), type(model).__name__)


def _inputs(graph: Graph, example: tuple[tuple[Tensor, ...], dict[str, Tensor]], i: int) -> list[Tensor]:
    """A batch as the graph's inputs; refused if it is not as the first."""
    try:
        inputs = graph.flatten(*example)
        check_inputs(graph, inputs)
    except (TypeError, ValueError) as error:
        raise type(error)(f"batches[{i}] is not as batches[0]: {error}") from None
    return inputs


def _excluded(graph: Graph, patterns: Sequence[str]) -> set[str]:
    """The places of the products that patterns name."""
    places = [place(op) for op in graph.ops if _is_product(op)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in places):
            raise ValueError(
                f"exclude: {pattern!r} is the name of no convolution or linear layer; there are {', '.join(places)}"
            )
    return {name for name in places if any(fnmatchcase(name, pattern) for pattern in patterns)}


def _refuse_infinite(ops: Iterable[Op]) -> None:
    """Refuse constants that no whole number stands for."""
    for op in ops:
        for constant in op.constants():
            if not bool(constant.isfinite().all()):
                raise ValueError(f"model: {place(op)} has a weight or a bias that is not finite")


def _is_product(op: Op) -> bool:
    return isinstance(op, (Conv2d, Linear))
