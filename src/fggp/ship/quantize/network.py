"""`fggp.quantize`: a network whose weights and activations are whole numbers of 8 bits."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fggp import registry
from fggp.ship.graph.capture import normalise_example, unwrapped
from fggp.ship.graph.check import check_inputs
from fggp.ship.graph.module import GraphModule
from fggp.ship.graph.operations import Graph, Op, Product, Value
from fggp.ship.graph.quantized import Quantization, QuantizedProduct
from fggp.ship.graph.simplify import simplify
from fggp.ship.network.aten import is_product
from fggp.ship.network.describe import captured
from fggp.ship.quantize import onnx_file
from fggp.ship.quantize.layers import ROUNDED
from fggp.ship.quantize.ranges import calibrated, observed
from fggp.ship.quantize.rewrite import Choice, joined, rewritten


class Quantized(GraphModule, registry.Certified):
    """A network of whole numbers, which `quantize` returns. Print it to see which layers these are.

    It is a module for inference: `fggp.compile` makes it fast and writes network files, `fggp.save` stores its state.
    The files say of its pruning what those of the model would say.
    Called as it is, it computes the same with PyTorch, slowly. Gradients do not flow through it.
    """

    def __init__(self, graph: Graph, name: str, certificate: Mapping[str, str]) -> None:
        super().__init__(graph)
        self._name = name
        self.certificate = certificate
        self.eval()

    def __repr__(self) -> str:
        layers = _layers(self.captured_graph)
        floats = [op.place for op in layers if not isinstance(op, QuantizedProduct)]
        weights = [w for op in layers for w in _weights(op)]
        zeros = sum(w.numel() - int(w.count_nonzero()) for w in weights) / max(1, sum(w.numel() for w in weights))
        rest = f"; in float32: {', '.join(floats)}" if floats else ""
        return (
            f"{self._name} quantised by fggp: {len(layers) - len(floats)} of {len(layers)} convolutions, linear and "
            f"recurrent layers in int8, {zeros:.1%} of their weights are zero{rest}"
        )

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the network as ONNX, from whose QuantizeLinear and DequantizeLinear nodes runtimes make it int8.

        Weights are stored as int8, zeros included. The batch size is free if the network takes any; other sizes are
        those of the batches it was quantised with. The inputs have the names of the model's arguments; the output is
        named "output", or outputs as the keys that the model returns. What runtimes return differs by rounding alone,
        after which a whole number may be the next one (docs/int8.md).

        Args:
            path: the file. It is replaced in one step.

        Raises:
            ModuleNotFoundError: the packages onnx and onnxscript are not installed.
            ExportError: PyTorch's exporter has no ONNX for an operator, which the message names. It is a RuntimeError.

        Example:
            >>> fggp.quantize(model, batches).to_onnx("net.onnx")
        """
        if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
            raise ModuleNotFoundError(f"to_onnx needs {', '.join(missing)}: pip install 'fggp[onnx]'")
        onnx_file.write(self.captured_graph, Path(path))


def quantize(
    model: nn.Module, batches: Iterable[Any], *, calibration: str = "mse", exclude: Sequence[str] = ()
) -> Quantized:
    """Make a trained network one of whole numbers of 8 bits, without training. Zero weights stay zero.

    Batch norms are folded first. Each output channel of a linear layer or two-dimensional convolution gets a scale, and
    its weights are rounded to −127 … 127 times it. Activations are rounded to 0 … 255, with a scale and a zero of their
    own for each tensor, which the batches decide. Sums, maximum pools, concatenations of vectors and the last mean
    between them run on whole numbers too; all else stays in float32, as does what the network returns. The first and
    the last layer are quantised like the others.

    Args:
        model: on the CPU; it is not changed.
        batches: some batches of what the model takes, as `fggp.compile` takes an example: tensors, or tuples of
            positional arguments, or dicts. A few hundred images suffice. All are kept in memory meanwhile.
        calibration: "mse" clips the range of an activation where that makes its squared error less; "minmax" does not.
        exclude: layers that stay in float32: patterns of their names, such as "features.0" or "classifier*".

    Returns:
        The network as a module.

    Raises:
        TypeError: an argument is of a wrong type, the model does not take such batches, or it is not in float32.
        ValueError: a setting is unknown; a pattern names no layer; no layer is left to be quantised; model or batches
            are not on the CPU; a batch is empty or not as the first one; a weight, or a value on a batch, is not
            finite.
        CaptureError, MutationError: the model cannot be captured (`fggp.compile` says what that takes).

    Warns:
        UserWarning: the model's pruning did not reach its target, or pruned weights are not zero.

    Example:
        >>> quantized = fggp.quantize(model, [x for x, _ in itertools.islice(loader, 8)])
        >>> fast = fggp.compile(quantized, torch.randn(1, 3, 32, 32))
        >>> fast.save("net.fggp")
    """
    plan = planned(model, batches, calibration, exclude)
    for message in registry.complaints(model):
        warnings.warn(f"fggp.quantize: {message}", UserWarning, stacklevel=2)
    return Quantized(rewritten(plan.graph, plan.choice, plan.of), type(model).__name__, registry.certificate(model))


Example: TypeAlias = "tuple[tuple[Tensor, ...], dict[str, Tensor]]"
"""Positional arguments and keyword arguments."""


@dataclass(frozen=True)
class Plan:
    """How a model becomes one of whole numbers.

    Args:
        example: of its arguments.
        graph: the model, simplified.
        choice: what runs on whole numbers.
        of: what these stand for.
        widths: the lengths of the ranges of `joined` values.
    """

    example: Example
    graph: Graph
    choice: Choice
    of: dict[Value, Quantization]
    widths: dict[Value, float]


def planned(model: nn.Module, batches: Iterable[Any], calibration: str, exclude: Sequence[str]) -> Plan:
    """Find how a model becomes one of whole numbers. Arguments and errors are those of `quantize`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r:.80} must be a torch.nn.Module: quantize(model, batches)")
    if isinstance(model, GraphModule):
        raise TypeError("model is quantised already; give the network that it was made of")
    if rounding := [name for name, module in model.named_modules() if type(module) in ROUNDED.values()]:
        raise ValueError(
            f"the model's {rounding[0]!r} rounds already, by quantization_aware; call the quantize() of what that "
            f"returned, or its remove() first"
        )
    if calibration not in ("mse", "minmax"):
        raise ValueError(f'calibration={calibration!r} must be "mse" or "minmax"')
    if isinstance(exclude, str):
        raise TypeError(f"exclude={exclude!r} must be a sequence of patterns: exclude=[{exclude!r}]")
    examples = _examples(model, batches)
    _refuse_other_floats(model)
    args, kwargs = examples[0]
    graph = simplify(captured(model, args, kwargs))
    excluded = excluded_places(graph, exclude)
    choice = Choice(graph, excluded)
    if not choice.groups:
        if excluded:
            raise ValueError(f"exclude={exclude!r} names all convolutions and linear layers; leave one or more to int8")
        raise ValueError("the model has no convolution or linear layer that could be quantised")
    refuse_infinite(graph, choice)
    inputs = [_inputs(graph, example, i) for i, example in enumerate(examples)]
    side_by_side = joined(graph)
    ranges = observed(graph, inputs, {*choice.groups, *side_by_side})
    widths = {v: ranges[v].width for v in side_by_side}
    choice = Choice(graph, excluded, widths)
    of = calibrated(graph, inputs, choice.groups, ranges, clip=calibration == "mse")
    return Plan(examples[0], graph, choice, of, widths)


def _examples(model: nn.Module, batches: Iterable[Any]) -> list[Example]:
    """The batches as a model's arguments; refused if the model does not take such."""
    if isinstance(batches, (Tensor, Mapping)):
        kind = "tensor" if isinstance(batches, Tensor) else "dict"
        raise TypeError(f"batches is a {kind}; it must be a sequence of batches: [x]")
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches={batches!r:.80} must be a sequence of batches, such as [x]")
    forward = inspect.signature(unwrapped(model).forward)
    examples = []
    for i, batch in enumerate(batches):
        args, kwargs = normalise_example(batch, f"batches[{i}]")
        try:
            forward.bind(*args, **kwargs)
        except TypeError as error:
            given = ", ".join([f"{len(args)} positional", *kwargs])
            raise TypeError(
                f"batches[{i}] has the arguments {given}, which {type(model).__name__}.forward{forward} does not take "
                f"({error}); give what the model takes alone, without labels: [x for x, _ in loader]"
            ) from None
        for x in (*args, *kwargs.values()):
            if not x.numel():
                raise ValueError(f"batches[{i}] has a tensor of the shape {list(x.shape)}; it must have elements")
            if x.device.type != "cpu":
                raise ValueError(f"batches[{i}] is on {x.device}; it must be on the CPU, as the model")
        examples.append((args, kwargs))
    if not examples:
        raise ValueError("batches is empty; it must have one batch or more of what the model takes")
    return examples


def _refuse_other_floats(model: nn.Module) -> None:
    floats = {name: p.dtype for name, p in model.named_parameters() if p.is_floating_point()}
    if floats and torch.float32 not in floats.values():
        name, dtype = next(iter(floats.items()))
        raise TypeError(f"the model's {name!r} is {dtype}; it must be in float32: quantize(model.float(), batches)")


def _inputs(graph: Graph, example: Example, i: int) -> list[Tensor]:
    """A batch as the graph's inputs; refused if it is not as the first."""
    try:
        inputs = graph.flatten(*example)
        check_inputs(graph, inputs)
    except (TypeError, ValueError) as error:
        raise type(error)(f"batches[{i}] is not as batches[0]: {error}") from None
    return inputs


def excluded_places(graph: Graph, patterns: Sequence[str]) -> set[str]:
    """The places of the layers that patterns name."""
    places = [op.place for op in _layers(graph)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in places):
            raise ValueError(
                f"exclude: {pattern!r} is the name of no convolution or linear layer; there are {', '.join(places)}"
            )
    return {name for name in places if any(fnmatchcase(name, pattern) for pattern in patterns)}


def refuse_infinite(graph: Graph, choice: Choice) -> None:
    """Refuse constants that no whole number stands for."""
    for op in graph.ops:
        for constant in op.constants() if op in choice.whole else ():
            if not bool(constant.isfinite().all()):
                raise ValueError(f"model: {op.place} has a weight or a bias that is not finite")


def _layers(graph: Graph) -> list[Op]:
    """The convolutions, linear and recurrent layers."""
    return [op for op in graph.ops if is_product(op) and _weights(op)]


def _weights(op: Op) -> list[Tensor]:
    return [op.weight] if isinstance(op, Product) else [x for x in op.constants() if x.dim() > 1]
