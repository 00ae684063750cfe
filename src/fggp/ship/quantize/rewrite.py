"""Which operations of a network run on whole numbers, and the network of these operations."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fggp.ship.graph import quantized
from fggp.ship.graph.operations import (
    Activate,
    Activation,
    AdaptiveAvgPool2d,
    Add,
    Channels,
    Concat,
    Conv2d,
    Flatten,
    Graph,
    Linear,
    MaxPool2d,
    Op,
    Value,
)

PRODUCTS_MAX = 1 << 16
"""Of an output, whose sum then fits 32 bits."""
WEIGHT_LEVELS = 127
WIDER_MAX = 4
"""How many times a concatenation may widen the range of a value that others read too. That costs two of eight bits."""
UNEVEN_MAX = 16
"""How many times wider than its narrowest part a concatenation may be that products read. That costs four."""


SHARING = (MaxPool2d, Flatten, Concat)
"""Operations on whole numbers whose results have the range of what they read."""
JOINING = (Concat, Channels)
"""Operations that put values side by side: `Channels` those of images, in floats."""


class Choice:
    """Which operations of a network run on whole numbers.

    Products do. So do sums, pools and concatenations of what they return, where whole numbers are wanted after them.
    What the network returns is not rounded to whole numbers; operations that also read it round it for themselves.

    What is concatenated shares one range, from which a value suffers that is much smaller than the others. If it has
    other readers, the concatenation stays in floats. If it would be next to nothing, the products that read the
    concatenation do, too.

    Args:
        graph: simplified.
        excluded: places of products that stay as they are.
        widths: the lengths of the ranges of `joined` values, if they are known.

    Attributes:
        whole: the operations.
        returned: the values that they return as whole numbers.
        groups: the values that are needed as whole numbers, and of each the value that stands for all that share what
            their numbers stand for.
    """

    def __init__(
        self, graph: Graph, excluded: Container[str] = (), widths: Mapping[Value, float] | None = None
    ) -> None:
        self.whole: set[Op] = set()
        uses, producers = graph.uses(), {op.output: op for op in graph.ops}

        def has_other_readers(v: Value) -> bool:
            """Whether a value, or one that shares its range, is read by more than one operation."""
            before = producers.get(v)
            sharing = before.inputs if before in self.whole and isinstance(before, SHARING) else ()
            return uses[v] > 1 or any(map(has_other_readers, sharing))

        def widened(op: Op) -> dict[Value, float]:
            """What is joined, and how many times that widens the range of each."""
            found = {v: widths[v] for v in op.inputs if v in widths} if widths and isinstance(op, JOINING) else {}
            return {v: max(found.values()) / width for v, width in found.items() if width}

        able: set[Value] = set()
        results = {x for x in graph.outputs if isinstance(x, Value)}  # returned as computed, in float32
        coarse: set[Value] = set()  # too uneven to be read as whole numbers
        for op in graph.ops:
            wider = widened(op)
            if any(times > UNEVEN_MAX for times in wider.values()) or (
                isinstance(op, (*SHARING, *JOINING)) and not coarse.isdisjoint(op.inputs)
            ):
                coarse.add(op.output)
            if not coarse.isdisjoint((op.output, *op.inputs)):
                continue
            apart = any(times > WIDER_MAX and has_other_readers(v) for v, times in wider.items())
            if (_is_quantizable(op) and op.place not in excluded) or (_follows(op, able) and not apart):
                self.whole.add(op)
                clamps = _clamps(getattr(op, "activation", None))
                if clamps and not isinstance(op, AdaptiveAvgPool2d) and op.output not in results:
                    able.add(op.output)
        wanted: set[Value] = set()
        self.returned: set[Value] = set()
        for op in reversed(graph.ops):
            if op not in self.whole:
                continue
            if op.output in wanted and op.output in able:
                self.returned.add(op.output)
            elif not isinstance(op, (Conv2d, Linear, AdaptiveAvgPool2d)):
                self.whole.remove(op)
                continue
            wanted.update(op.inputs)
        parents = {v: v for v in (*graph.inputs, *(op.output for op in graph.ops)) if v in wanted}

        def top(v: Value) -> Value:
            while parents[v] is not v:
                v = parents[v]
            return v

        for op in graph.ops:
            if op in self.whole and isinstance(op, SHARING):
                for v in op.inputs:
                    parents[top(v)] = top(op.output)
        self.groups = {v: top(v) for v in parents}


def _is_quantizable(op: Op) -> bool:
    return isinstance(op, (Conv2d, Linear)) and 0 < op.weight[0].numel() <= PRODUCTS_MAX


def _clamps(activation: Activation | None) -> bool:
    return activation is None or activation.name == "clamp"


def _follows(op: Op, able: set[Value]) -> bool:
    """Whether an operation that is no product can read whole numbers that others return."""
    if not all(v in able for v in op.inputs):
        return False
    match op:
        case Add():
            return _clamps(op.activation)
        case MaxPool2d() | Flatten():
            return True
        case AdaptiveAvgPool2d():
            return op.size == (1, 1)
        case Concat():
            return op.dim == 1
    return False


def joined(graph: Graph) -> set[Value]:
    """The values that are concatenated with others."""
    return {v for op in graph.ops if isinstance(op, JOINING) for v in op.inputs}


def rewritten(graph: Graph, choice: Choice, of: Mapping[Value, quantized.Quantization]) -> Graph:
    """The network with the chosen operations on whole numbers.

    Args:
        graph: as it was given to `Choice`.
        choice: the operations.
        of: what the whole numbers of `Choice.groups` stand for.
    """
    ops: list[Op] = []
    weights = cache(quantized_weight)  # a layer that is used twice has one weight
    whole: dict[Value, Value] = {}  # of each value, the one of whole numbers that stands for it
    known = set(graph.inputs)  # values as they were

    def as_whole(v: Value) -> Value:
        if v not in whole:
            whole[v] = _whole(v)
            ops.append(quantized.Quantize((v,), whole[v], of[v]))
        return whole[v]

    def as_float(v: Value) -> None:
        if v not in known and v in whole:
            known.add(v)
            ops.append(quantized.Dequantize((whole[v],), v, of[v]))

    for op in graph.ops:
        if op not in choice.whole:
            for v in op.inputs:
                as_float(v)
            ops.append(op)
            known.add(op.output)
            continue
        read = tuple(map(as_whole, op.inputs))
        returns_whole = op.output in choice.returned
        if returns_whole:
            whole[op.output] = _whole(op.output)
        else:
            known.add(op.output)
        result = whole[op.output] if returns_whole else op.output
        activation: Activation | None = getattr(op, "activation", None)
        if activation is None or _clamps(activation):
            ops.append(_on_whole(op, read, result, of, weights))
        else:  # of floats, after the product
            before = replace(result, name=f"{result.name}_before")
            ops += [_on_whole(op, read, before, of, weights), Activate((before,), result, activation)]
    for x in graph.outputs:
        if isinstance(x, Value):
            as_float(x)
    return replace(graph, ops=tuple(ops))


def _whole(v: Value) -> Value:
    return replace(v, name=f"{v.name}_u8", dtype=torch.uint8)


def _on_whole(
    op: Op,
    read: tuple[Value, ...],
    output: Value,
    of: Mapping[Value, quantized.Quantization],
    weights: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Op:
    """An operation on whole numbers."""
    x = of[op.inputs[0]]
    to = of[op.output] if output.dtype == torch.uint8 else None
    if isinstance(op, (Conv2d, Linear)):
        weight, scale = weights(op.weight)
        given: dict[str, Any] = {
            "inputs": read,
            "output": output,
            "weight": weight,
            "bias": op.bias,
            "scale": scale * torch.tensor(x.scale),
            "of": x,
            "residual_of": of[op.inputs[1]] if len(op.inputs) > 1 else None,
            "to": to,
            "activation": op.activation if _clamps(op.activation) else None,
            "layer": op.layer,
        }
        if isinstance(op, Linear):
            return quantized.QuantizedLinear(**given)
        window: dict[str, Any] = {
            "stride": op.stride,
            "padding": op.padding,
            "dilation": op.dilation,
            "groups": op.groups,
        }
        return quantized.QuantizedConv2d(**given, **window)
    if isinstance(op, Add):
        assert to is not None
        return quantized.QuantizedAdd(read, output, (x, of[op.inputs[1]]), to, op.activation)
    if isinstance(op, AdaptiveAvgPool2d):
        return quantized.QuantizedMean(read, output, x)
    return replace(op, inputs=read, output=output)


def quantized_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight as int8 from −127 to 127, and the scale of each output channel. Zeros stay zeros.

    Args:
        weight: float32 [O, …].

    Returns:
        The int8 of the weight's shape, and float32 [O].
    """
    scale = weight_scale(weight)
    whole = (weight / scale.view(-1, *[1] * (weight.dim() - 1))).round()
    return whole.clamp(-WEIGHT_LEVELS, WEIGHT_LEVELS).to(torch.int8), scale


def weight_scale(weight: Tensor) -> Tensor:
    """The scale of each output channel of a weight, float32 [O]."""
    largest = weight.flatten(1).abs().amax(1)
    return torch.where(largest >= WEIGHT_LEVELS * 1e-30, largest / WEIGHT_LEVELS, 1.0)
