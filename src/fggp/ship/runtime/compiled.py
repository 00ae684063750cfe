"""`fggp.compile`: a network prepared for inference on this machine's CPU that skips zero weights."""

from __future__ import annotations

import copy
import ctypes
import math
import os
import threading
import warnings
import zlib
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_unflatten

from fggp import registry
from fggp.native import KernelsMissingError
from fggp.ship.graph import interpret
from fggp.ship.graph.capture import CaptureError, evaluation_mode, normalise_example
from fggp.ship.graph.check import check_inputs
from fggp.ship.graph.inplace import MutationError
from fggp.ship.graph.operations import Graph, Value
from fggp.ship.graph.simplify import simplify
from fggp.ship.network.describe import captured, describe_model
from fggp.ship.network.write import write
from fggp.ship.runtime import library
from fggp.ship.runtime.engine import Engine
from fggp.ship.runtime.library import RefusedError
from fggp.ship.runtime.summary import summary

# The relative difference that is accepted between the compiled network and the model: larger than the rounding
# difference of another order of additions, smaller than what a bug would cause.
TOLERANCE = 1e-3
# Shapes of inputs that were found to fit are kept, because the check takes as long as a small layer.
_CHECKED_KEPT = 64


def compile(model: nn.Module, example_input: Any) -> Compiled:
    """Prepare a network for inference on the CPU, in float32, that skips zero weights.

    Batch norms are folded into the convolutions and linear layers before them. The network runs in fggp's C++ library,
    and operations that it does not have run on PyTorch. A layer runs on the library's sparse or dense kernels,
    whichever is faster, by measurement.

    Args:
        model: on the CPU; it is not changed. Later changes of its weights do not affect the compiled network.
        example_input: a tensor; or a tuple of tensors, for several arguments; or a dict, for keyword arguments.
            Dimension 0 is the batch. The compiled network is prepared for inputs of these sizes, and for others when
            they first come: other batch sizes, and other heights, widths and lengths if the model leaves them free.

    Returns:
        A function that takes the same arguments as the model.

    Raises:
        TypeError: example_input has none of these forms.
        ValueError: the model or example_input is not on the CPU, or example_input is an empty batch.

    Warns:
        UserWarning: the whole network runs on PyTorch, because fggp was installed without its kernels or the model
            cannot be captured; the message says why. Or the model's pruning did not reach its target, or pruned
            weights are not zero.

    Example:
        >>> fast = fggp.compile(model, torch.randn(1, 3, 32, 32))
        >>> y = fast(x)
        >>> print(fast)  # each layer, what runs it, and its time
    """
    args, kwargs = normalise_example(example_input)
    for message in registry.complaints(model):
        warnings.warn(f"fggp.compile: {message}", UserWarning, stacklevel=2)
    return Compiled(model, args, kwargs)


class Compiled:
    """A network prepared for inference by `compile`. Print it to see what runs each layer.

    It may be called from several threads, which take turns. Gradients do not flow through it.
    """

    def __init__(self, model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        self._name = type(model).__name__
        self._example = args, kwargs
        self._lock = threading.Lock()
        self._fallback_model: nn.Module | None = None
        self._graph: Graph | None = None
        self._engine: Engine | None = None
        self._reason = ""
        self._checked: set[Any] = set()
        self._model = model
        self._weights = _fingerprint(model)
        try:
            captured_graph = captured(model, args, kwargs)
            self._engine = Engine(simplify(captured_graph, copy_constants=False), library.load())
            self._graph = self._engine.signature
        except (CaptureError, MutationError, RefusedError) as error:
            self._fall_back(f"the whole model runs on PyTorch: {error}", model)
        except KernelsMissingError as error:
            self._graph = simplify(captured_graph)
            self._fall_back(f"the simplified network runs on PyTorch's dense kernels: {error}")
        _return_freed_memory()
        if self._engine is not None:
            difference = self._relative_difference(self._engine, model)
            if difference > TOLERANCE:
                self._fall_back(
                    f"the whole model runs on PyTorch: the compiled network's output differs from the model's by "
                    f"{difference:.1e} (relative). Possible reasons: the model draws random numbers, or its code "
                    f"depends on the batch size",
                    model,
                )

    @torch.no_grad()
    def _relative_difference(self, engine: Engine, model: nn.Module) -> float:
        """The distance of the compiled output for the example from the model's, relative to the norm of the model's."""
        args, kwargs = self._example
        ours = tree_leaves(self(*args, **kwargs))
        # The model takes much time and memory for a whole batch. Two images suffice where images are independent.
        if engine.images_are_independent:
            ours = [x[:2] if isinstance(v, Value) else x for v, x in zip(engine.signature.outputs, ours, strict=True)]
            args, kwargs = tuple(x[:2] for x in args), {name: x[:2] for name, x in kwargs.items()}
        with evaluation_mode(model):
            expected = tree_leaves(model(*args, **kwargs))
        return max((_relative_distance(a, b) for a, b in zip(ours, expected, strict=True)), default=0.0)

    def _fall_back(self, reason: str, model: nn.Module | None = None) -> None:
        self._reason = reason
        if model is not None:
            self._engine = self._graph = None
            self._fallback_model = copy.deepcopy(model).eval()
        warnings.warn(f"fggp.compile: {reason}", stacklevel=4)  # the line that calls compile

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        values: torch.dtype | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write the network as a network file, which fggp's C library runs without Python and PyTorch.

        docs/network-file.md describes the file. Its inputs have the names of the model's arguments; the output is
        named "output", or outputs as the keys that the model returns. The batch size is free, and so are heights,
        widths and sequence lengths that the model leaves free.

        Args:
            path: the file. It is replaced in one step.
            values: ``torch.bfloat16`` rounds the values of weights that are stored sparse.
            metadata: texts of your own by name, such as the names of the classes.

        Raises:
            UnsupportedError: the file cannot express operations of the network; the message names them all, and where
                they are in the model.
            RuntimeError: the whole model runs on PyTorch, or its weights have changed since it was compiled.
            ValueError, TypeError: as `fggp.save`.

        Example:
            >>> fggp.compile(model, torch.randn(1, 3, 224, 224)).save("net.fggp")
        """
        if self._fallback_model is not None:
            raise RuntimeError(f"there is no network to save: {self._reason}")
        if _fingerprint(self._model) != self._weights:
            raise RuntimeError(
                f"the weights of this {self._name} have changed since it was compiled, and the file would have the new "
                f"ones; compile it again, and then save"
            )
        description = describe_model(self._model, *self._example)
        texts = {**registry.certificate(self._model), **(metadata or {})}
        write(path, description.network, description.tensors, texts, values=values)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a compiled network is bound to this processor and process, and cannot be copied or pickled; write a "
            "network file (save), or save the model itself (fggp.save) and compile it where it is to run"
        )

    @torch.no_grad()
    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Run the network.

        Args:
            args: the model's positional arguments, of the example's dtypes and shapes; only the batch size may differ,
                and heights, widths and lengths if the model leaves them free.
            kwargs: its keyword arguments, with the same rule.

        Returns:
            The model's return value, in new tensors.

        Raises:
            TypeError: the arguments are not those of the example.
            ValueError: a tensor's shape, dtype or device does not fit; the message says what would.
        """
        if self._fallback_model is not None:
            return self._fallback_model(*args, **kwargs)
        assert self._graph is not None
        inputs = self._graph.flatten(args, kwargs)
        kinds = tuple((x.dtype, x.shape, x.device) if isinstance(x, Tensor) else None for x in inputs)
        if kinds not in self._checked:
            check_inputs(self._graph, inputs, any_batch=self._engine is not None)
            if len(self._checked) == _CHECKED_KEPT:
                self._checked.clear()
            self._checked.add(kinds)
        if self._engine is None:
            return interpret.run(self._graph, inputs)
        with self._lock:
            outputs = self._engine.run(inputs)
        owned = [
            x.clone() if isinstance(x, Tensor) and not isinstance(v, Value) else x
            for v, x in zip(self._graph.outputs, outputs, strict=True)
        ]
        return tree_unflatten(owned, self._graph.out_spec)

    def __repr__(self) -> str:
        if self._engine is None:
            return f"{self._name} compiled by fggp: {self._reason}"
        assert self._graph is not None
        args, kwargs = self._example
        inputs = self._graph.flatten(args, kwargs)
        with self._lock, torch.no_grad():
            return summary(self._name, self._engine, inputs)


def _relative_distance(ours: Any, expected: Any) -> float:
    """The distance of an output from the expected one, relative to the norm of the expected one."""
    if not isinstance(ours, Tensor) or not ours.is_floating_point() or not expected.isfinite().all():
        return 0.0
    distance = float((ours - expected).double().norm() / expected.double().norm().clamp_min(1e-30))
    return math.inf if math.isnan(distance) else distance


def _return_freed_memory() -> None:
    """Give the memory of the dense weights back to the system: the GNU C library keeps it for the next allocations."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None:
        trim(0)


@torch.no_grad()
def _fingerprint(model: nn.Module) -> list[tuple[str, int]]:
    """A checksum of each parameter and buffer on the CPU, to notice changes."""
    return [(name, _checksum(t)) for name, t in (*model.named_parameters(), *model.named_buffers())]


def _checksum(t: Tensor) -> int:
    if t.device.type != "cpu" or t.layout != torch.strided or not t.numel():
        return 0
    dense = t.detach().contiguous()
    return zlib.crc32((ctypes.c_char * (dense.numel() * dense.element_size())).from_address(dense.data_ptr()))
