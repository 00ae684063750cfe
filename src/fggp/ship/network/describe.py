"""From a simplified graph to the description of a network file."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import TreeSpec

from fggp.ship.graph.calls import Call, arguments, map_leaves
from fggp.ship.graph.capture import capture, unwrapped
from fggp.ship.graph.module import GraphModule
from fggp.ship.graph.operations import Graph, Op, Value, is_size
from fggp.ship.graph.simplify import simplify
from fggp.ship.network.aten import HANDLERS
from fggp.ship.network.description import Description, Inexpressible, UnsupportedError
from fggp.ship.network.known import known_operation
from fggp.ship.network.nodes import QUANTIZED_TYPES, Operand, Writer, file_dtype, value_dtype, with_sizes


def describe(
    graph: Graph, *, input_names: Sequence[str] | None = None, names: Mapping[Any, str] | None = None
) -> Description:
    """Describe a network without PyTorch.

    Args:
        graph: simplified.
        input_names: of the graph's inputs; by default those of the graph's Values.
        names: `tensor_names` of the model, if the graph shares its tensors. Other tensors are named by the module that
            reads them and what they are there, such as "features.0.weight".

    Returns:
        The network and its tensors. The tensors may be the graph's own.

    Raises:
        UnsupportedError: naming everything that the network file cannot express.
    """
    known = names or {}
    writer = Writer(lambda t: known.get(memory_key(t)))
    found: list[tuple[str, str, str]] = []
    values: dict[Value, Any] = {}
    input_names = input_names or [v.name for v in graph.inputs]
    for v, name in zip(graph.inputs, input_names, strict=True):
        try:
            values[v] = writer.input(name, v.dtype, v.sizes)  # type: ignore[arg-type]
        except (Inexpressible, ValueError) as error:
            found.append((f"the input {name!r}", "", str(error)))
            values[v] = Operand(-1, torch.float32, v.sizes)
    for op in graph.ops:
        if is_size(op.output):
            values[op.output] = op.output.sizes[0]
            continue
        writer.module = op.module
        try:
            values[op.output] = _written(writer, op, values)
        except (Inexpressible, ValueError) as error:
            operator = op.target_name if isinstance(op, Call) else type(op).__name__
            found.append((operator, writer.module, str(error)))
            values[op.output] = _stand_in(op.output)
    writer.module = ""
    outputs = []
    for name, x in named_outputs(graph):
        try:
            if (operand := _output(writer, x, name, values)) is not None:
                outputs.append({"name": name, "value": operand.place})
        except Inexpressible as error:
            found.append((f"the output {name!r}", "", str(error)))
    if found:
        raise UnsupportedError(found)
    network = {"inputs": writer.inputs, "nodes": writer.nodes, "outputs": outputs}
    return Description(network, writer.tensors)


def describe_model(model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Description:
    """Describe a model. Batch sizes, heights, widths and lengths are free where the model leaves them free.

    Args:
        model: on the CPU; it is not changed. The description may share its tensors.
        args: an example of its positional arguments (`fggp.ship.graph.capture.normalise_example`).
        kwargs: an example of its keyword arguments.

    Raises:
        UnsupportedError: naming everything that the network file cannot express.
        CaptureError, MutationError, ValueError: it cannot be captured (`capture`).
    """
    model = unwrapped(model)
    graph = simplify(captured(model, args, kwargs), copy_constants=False)
    given = [v.name for v in graph.inputs[: len(args)]]
    names = [*(given if isinstance(model, GraphModule) else _argument_names(model, len(args))), *graph.keywords]
    return describe(graph, input_names=names, names=tensor_names(model))


def captured(model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Graph:
    """A model's graph with all sizes free that it leaves free, and as few operators as possible that the file lacks.

    The arguments and the errors are those of `describe_model`.
    """
    if isinstance(model, GraphModule):
        return model.captured_graph
    return capture(model, args, kwargs, any_size=True, decomposed=lambda op: op not in HANDLERS)


def written_alone(op: Op, written: Mapping[Value, Any]) -> Any:
    """What one operation of a graph would be in a network file.

    Args:
        op: it. It computes no size.
        written: what this function returned for operations before it.

    Returns:
        An operand, a tuple of operands, or a number.

    Raises:
        Inexpressible, ValueError: the network file cannot express it.
    """
    values: dict[Value, Any] = {}
    for v in op.inputs:
        if is_size(v):
            values[v] = v.sizes[0]
        elif v.dtype is None:
            if v not in written:
                raise Inexpressible(f"{v.name} is no tensor")
            values[v] = written[v]
        else:
            if -1 in v.shape:
                raise Inexpressible(f"the shape of {v.name} depends on the data")
            values[v] = Operand(-1, value_dtype(v.dtype), v.sizes)
    return _written(Writer(lambda t: None), op, values)


def _argument_names(model: nn.Module, count: int) -> list[str]:
    """The names of the first positional arguments of a model."""
    names: list[str] = []
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}{i}" for i in range(count - len(names))]
        elif parameter.kind is not parameter.KEYWORD_ONLY and parameter.kind is not parameter.VAR_KEYWORD:
            names.append(parameter.name)
    return names[:count]


def tensor_names(model: nn.Module) -> dict[Any, str]:
    """The names of a model's parameters and buffers, for `describe`."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {memory_key(tensor.detach()): name for name, tensor in reversed(tensors)}


def memory_key(t: Tensor) -> Any:
    """What tells a tensor from others in the keys of `tensor_names`."""
    return (t.data_ptr(), tuple(t.shape), t.stride(), t.dtype)


def _stand_in(v: Value) -> Operand:
    """What takes the place of a value that cannot be computed, so that the search for others goes on."""
    dtype = v.dtype if v.dtype in (torch.float32, torch.int64, torch.bool) else torch.float32
    return Operand(-1, dtype, v.sizes)


def _written(w: Writer, op: Op, values: Mapping[Value, Any]) -> Any:
    """Write an operation, and return what it computes: an operand, a tuple of them, or for some Calls a number."""
    if not isinstance(op, Call):
        return known_operation(w, op, [values[v] for v in op.inputs])
    handler = HANDLERS.get(op.target)
    for v in op.inputs:
        if v.dtype in QUANTIZED_TYPES:  # only quantised operations read them
            file_dtype(v.dtype)
    if handler is None:
        raise Inexpressible("the network file has no operator for it")
    given: dict[str, Any]
    if isinstance(op.target, OpOverload):
        given = arguments(op.target, op.args, op.kwargs)
    else:
        given = {str(i): x for i, x in enumerate(op.args)}
    given = map_leaves(given, lambda x: values[x] if isinstance(x, Value) else x)
    result = handler(w, op, given)
    if op.output.dtype is None or not isinstance(result, Operand):
        return result
    expected = file_dtype(op.output.dtype)
    if result.dtype != expected:
        raise Inexpressible(f"its result is {result.dtype} here, and {expected} in PyTorch: a defect of fggp")
    if any(size == -1 for size in op.output.shape):
        raise Inexpressible("its result's shape depends on the data")
    return with_sizes(result, op.output.sizes)


def _output(w: Writer, x: Any, name: str, values: Mapping[Value, Any]) -> Operand | None:
    """An output as an operand; None if the model returns None there."""
    if x is None:
        return None
    if isinstance(x, Tensor):
        return w.tensor(x, f"output {name}")
    result = values[x] if isinstance(x, Value) else x
    if not isinstance(result, Operand):
        raise Inexpressible(f"it is {result!r:.40}, and outputs of a network are tensors")
    return result


def named_outputs(graph: Graph) -> list[tuple[str, Any]]:
    """The elements of the return value by name: "output", or the keys of what the model returns."""
    paths = [".".join(path) or "output" for path in _paths(graph.out_spec)]
    paths = [f"output{path}" if path.isdecimal() else path for path in paths]
    return list(zip(paths, graph.outputs, strict=True))


def _paths(spec: TreeSpec) -> Iterable[list[str]]:
    if spec.is_leaf():
        yield []
        return
    keys = _keys(spec)
    for key, child in zip(keys, spec.children(), strict=True):
        for path in _paths(child):
            yield [key, *path]


def _keys(spec: TreeSpec) -> list[str]:
    """The keys of a container: those of a dict or a named tuple, or else numbers."""
    context = spec.context
    fields = getattr(context, "_fields", None) or getattr(spec.type, "_fields", None)
    candidates = [context, fields, *(context if isinstance(context, (list, tuple)) else ())]
    for keys in candidates:
        if isinstance(keys, (list, tuple)) and len(keys) == spec.num_children and all(isinstance(k, str) for k in keys):
            return list(keys)
    return [str(i) for i in range(spec.num_children)]
