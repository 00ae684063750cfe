"""`fggp.compile`: a network ready for inference on this machine's CPU, skipping the weights that are zero."""

from __future__ import annotations

import copy
import math
import threading
import warnings
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_unflatten

from fggp.ship.graph import interpret
from fggp.ship.graph.capture import CaptureError, capture, evaluation, normalise_example
from fggp.ship.graph.inplace import MutationError
from fggp.ship.graph.operations import Graph, Value
from fggp.ship.graph.simplify import simplify
from fggp.ship.runtime import kernels
from fggp.ship.runtime.engine import Engine
from fggp.ship.runtime.kernels import KernelsMissingError
from fggp.ship.runtime.summary import summary

# More than another order of additions makes, less than any mistake would.
TOLERANCE = 1e-3


def compile(model: nn.Module, example_input: Any) -> Compiled:
    """Make a network ready for inference on the CPU, in float32, skipping the weights that are zero.

    Batch norms are folded into the products before them; sparse convolutions and linear layers, and what lies between
    them, run on fggp's own kernels, the rest on PyTorch. Layers too dense to gain stay PyTorch's, by measurement.

    Args:
        model: on the CPU; it is left as it is. Later changes of its weights do not reach what is returned.
        example_input: a tensor; or a tuple of tensors, for several arguments; or a dict, for keyword arguments.
            Dimension 0 is the batch. What is returned is made for batches of this size; another size is made ready
            when it first comes.

    Returns:
        A function of the same arguments as the model's.

    Raises:
        TypeError: example_input is none of these.
        ValueError: the model or example_input is not on the CPU, or example_input is an empty batch.

    Warns:
        UserWarning: all of it runs on PyTorch, because fggp was installed without its kernels or the model cannot be
            captured; the message says why.

    Example:
        >>> fast = fggp.compile(model, torch.randn(1, 3, 32, 32))
        >>> y = fast(x)
        >>> print(fast)  # what runs where, and for how long
    """
    args, kwargs = normalise_example(example_input)
    return Compiled(model, args, kwargs)


class Compiled:
    """A network ready to run; `compile` makes it. Print it to see what runs where.

    It may be called from several threads; they take turns. Gradients do not flow through it.
    """

    def __init__(self, model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        self._name = type(model).__name__
        self._example = args, kwargs
        self._turn = threading.Lock()
        self._whole: nn.Module | None = None
        self._graph: Graph | None = None
        self._engine: Engine | None = None
        self._reason = ""
        try:
            self._graph = simplify(capture(model, args, kwargs))
            self._engine = Engine(self._graph, kernels.load())
        except (CaptureError, MutationError) as error:
            self._fall_back(f"the whole model runs on PyTorch: {error}", model)
        except KernelsMissingError as error:
            self._fall_back(f"all of it runs on PyTorch's dense kernels: {error}")
        if self._engine is not None:
            difference = self._difference(self._engine, model)
            if difference > TOLERANCE:
                reason = f"compiled, it is off by {difference:.1e} of its output's size"
                reason = f"{reason}, as if it drew random numbers or branched on the batch size"
                self._fall_back(f"the whole model runs on PyTorch: {reason}", model)

    @torch.no_grad()
    def _difference(self, engine: Engine, model: nn.Module) -> float:
        """How far what is computed for the example is from what the model computes, relative to its size."""
        args, kwargs = self._example
        ours = tree_leaves(self(*args, **kwargs))
        assert self._graph is not None
        # PyTorch takes its time, and memory for all of a batch; two images tell as much where each is for itself.
        few = engine.first(self._graph.flatten(args, kwargs), 2)
        if few is not None:
            ours = [x[:2] if isinstance(v, Value) else x for v, x in zip(self._graph.outputs, ours, strict=True)]
            args, kwargs = tuple(few[: len(args)]), dict(zip(self._graph.keywords, few[len(args) :], strict=True))
        with evaluation(model):
            expected = tree_leaves(model(*args, **kwargs))
        return max((_distance(a, b) for a, b in zip(ours, expected, strict=True)), default=0.0)

    def _fall_back(self, reason: str, whole: nn.Module | None = None) -> None:
        self._reason = reason
        if whole is not None:
            self._engine = self._graph = None
            self._whole = copy.deepcopy(whole).eval()
        warnings.warn(f"fggp.compile: {reason}", stacklevel=4)  # at the line that calls compile

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a compiled network is made for the processor and process it is in, and cannot be copied or pickled; save "
            "the model itself (fggp.save), and compile it where it is to run"
        )

    @torch.no_grad()
    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Run the network.

        Args:
            args: as the model's; of the example's shapes and types, but for the batch.
            kwargs: likewise.

        Returns:
            What the model returns, in new tensors.

        Raises:
            TypeError: other arguments than the example's.
            ValueError: a tensor is not like the example's; the message says how.
        """
        if self._whole is not None:
            return self._whole(*args, **kwargs)
        assert self._graph is not None
        inputs = self._graph.flatten(args, kwargs)
        self._check(self._graph, inputs)
        if self._engine is None:
            return interpret.run(self._graph, inputs)
        with self._turn:
            leaves = self._engine.run(inputs)
        fresh = [
            x.clone() if isinstance(x, Tensor) and not isinstance(v, Value) else x
            for v, x in zip(self._graph.outputs, leaves, strict=True)
        ]
        return tree_unflatten(fresh, self._graph.out_spec)

    def _check(self, graph: Graph, inputs: list[Tensor]) -> None:
        for value, x in zip(graph.inputs, inputs, strict=True):
            if not isinstance(x, Tensor):
                raise TypeError(f"input {value.name!r} is of type {type(x).__name__}; it must be a tensor")
            varies = any(isinstance(size, str) for size in value.sizes[:1]) or graph.batch is not None
            right = (
                (x.shape[1:] == value.shape[1:] and x.dim() == len(value.shape)) if varies else x.shape == value.shape
            )
            if not right or x.dtype != value.dtype or x.device.type != "cpu":
                wanted = ("any", *value.shape[1:]) if varies else value.shape
                raise ValueError(
                    f"input {value.name!r} is {x.dtype} {tuple(x.shape)} on {x.device}; it must be {value.dtype} "
                    f"{wanted} on the CPU, as the example was"
                )

    def __repr__(self) -> str:
        if self._engine is None:
            return f"{self._name} compiled by fggp: {self._reason}"
        assert self._graph is not None
        args, kwargs = self._example
        inputs = self._graph.flatten(args, kwargs)
        with self._turn, torch.no_grad():
            return summary(self._name, self._engine, inputs)


def _distance(ours: Any, expected: Any) -> float:
    """The distance of an output from the expected one, relative to that one's size."""
    if not isinstance(ours, Tensor) or not ours.is_floating_point() or not expected.isfinite().all():
        return 0.0
    distance = float((ours - expected).double().norm() / expected.double().norm().clamp_min(1e-30))
    return math.inf if math.isnan(distance) else distance
