"""From a model and an example of its input to a `Graph` of operator calls, by torch.export."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils._pytree import tree_unflatten

from fggp.ship.graph import free_sizes
from fggp.ship.graph.calls import Call, arguments, map_leaves
from fggp.ship.graph.inplace import MutationError, functional_targets, refuse_changed
from fggp.ship.graph.operations import Graph, Value

# For some networks torch.export reports a huge upper bound of the batch size: 2⁶³ divided by some factor. A bound of
# UNBOUNDED_FROM or more counts as no bound.
UNBOUNDED_FROM = 1 << 20


class CaptureError(RuntimeError):
    """torch.export cannot trace this model; the message says why."""


def normalise_example(example_input: Any, name: str = "example_input") -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """A model's positional and keyword arguments, from an example in any of the accepted forms.

    Args:
        example_input: a tensor, a tuple or list of tensors (positional arguments), or a dict of them (keyword
            arguments).
        name: what messages call it.

    Returns:
        Positional arguments and keyword arguments.

    Raises:
        TypeError: example_input has none of these forms.
        ValueError: example_input holds no tensor.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_input, Tensor):
        args = (example_input,)
    elif isinstance(example_input, Mapping):
        kwargs = dict(example_input)
    elif isinstance(example_input, (tuple, list)):
        args = tuple(example_input)
    else:
        raise TypeError(
            f"{name} is of type {type(example_input).__name__}; it must be a tensor, a tuple of tensors "
            f"(positional arguments) or a dict of tensors (keyword arguments)"
        )
    for place, x in [*enumerate(args), *kwargs.items()]:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}[{place!r}] is of type {type(x).__name__}; it must be a tensor")
    for key in kwargs:
        if not isinstance(key, str):
            raise TypeError(f"{name} has the key {key!r}; a dict holds keyword arguments, so its keys are str")
    if not args and not kwargs:
        raise ValueError(f"{name} is empty; it must hold at least one tensor")
    return args, kwargs


def capture(
    model: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Tensor],
    *,
    any_size: bool = False,
    decomposed: Callable[[OpOverload], bool] | None = None,
) -> Graph:
    """Trace a model's computation in evaluation mode.

    The model is unchanged afterwards. The graph shares the model's parameters and buffers until `simplify` copies them.

    Args:
        model: on the CPU, in training or evaluation mode.
        args: an example of its positional arguments (`normalise_example`). The batch size is the length of the first
            tensor that is no scalar; dimension 0 of every input of this length is the batch.
        kwargs: an example of its keyword arguments.
        any_size: besides the batch, leave heights, widths and sequence lengths free, if the same operations serve
            them all (`fggp.ship.graph.free_sizes`). A Value of an integer then has its expression as its only size.
        decomposed: says of an operator that it is to be replaced by those that PyTorch defines it by, if it is so
            defined; None: none is.

    Returns:
        A graph of Calls. It accepts any batch size (``batch`` is None) if tracing found that the same operations serve
        all of them; else only the example's.

    Raises:
        CaptureError: torch.export cannot trace it, in most cases because its control flow depends on data.
        MutationError: the model changes its inputs, parameters or buffers.
        ValueError: model or example is not on the CPU, or the example is an empty batch.
    """
    model = unwrapped(model)
    _check_on_cpu(model, args, kwargs)
    batch = next((len(x) for x in (*args, *kwargs.values()) if x.dim()), None)
    if batch == 0:
        raise ValueError("example_input is a batch of 0; it must hold at least one")
    with evaluation_mode(model), torch.no_grad(), warnings.catch_warnings(), _quiet():
        # torch warns of its own internals, and of attributes set while tracing, which `evaluation_mode` restores.
        warnings.simplefilter("ignore")
        errors = []
        ways = [(batch, False, False), (batch, True, False), (None, False, False), (None, True, False)]
        for size, strict, all_sizes in [(batch, False, True), *ways] if any_size else ways:
            try:
                program = _trace(model, args, kwargs, size, strict, all_sizes)
                if decomposed is not None:
                    with free_sizes.tracing() if all_sizes else nullcontext():
                        program = _decomposed(program, decomposed)
                program, targets = _functional(program)
            except MutationError:
                raise
            except Exception as error:
                # Whatever the error, another way of tracing may succeed. It is reported if none does.
                errors.append(error)
                continue
            symbol = None if size is None else _batch_symbol(program)
            if all_sizes and not (_takes(program, args, kwargs) and free_sizes.serve_all(program)):
                continue
            if size is None or symbol is not None:
                shapes = _SymbolicShapes(program, args, kwargs, symbol, any_size)
                return _graph(program, targets, shapes, batch=batch if size is None else None)
    # The non-strict tracer's error for the example's own sizes points at lines of the model.
    reason = "\n".join([line for line in str(errors[-2]).splitlines() if line.strip()][:3])
    raise CaptureError(f"torch.export cannot trace {type(model).__name__}: {reason}") from errors[-2]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside wrappers of torch.compile and data parallelism."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _check_on_cpu(model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
    for what, tensors in (
        ("parameter", model.named_parameters()),
        ("buffer", model.named_buffers()),
        ("example_input", [*enumerate(args), *kwargs.items()]),
    ):
        for name, tensor in tensors:
            if tensor.device.type != "cpu":
                raise ValueError(f"{what} {name!r} is on {tensor.device}; model and example_input must be on the CPU")


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what torch logs and prints when it cannot trace a model: pages for each way. The error is reported once."""

    def nothing(record: logging.LogRecord) -> bool:
        return False

    handlers = list(logging.getLogger("torch").handlers)
    for handler in handlers:
        handler.addFilter(nothing)
    try:
        with redirect_stderr(io.StringIO()):  # torch.export prints the graph that it has so far
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(nothing)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and restore all attributes of all its modules afterwards.

    Sets the flags directly, because a model may have an eval() of its own that changes weights. Attributes are restored
    because a model that stores results in forward() would otherwise keep the fake tensors of tracing. So are the dicts
    and lists that are attributes: LeViT keeps its biases in one.
    """
    tables = [table for module in model.modules() for table in _attribute_tables(module)]
    before = [dict(table) for table in tables]
    kept = [x for table in tables for x in table.values() if type(x) in (dict, list)]
    kept_before = [x.copy() for x in kept]
    flags = [(module, module.training) for module in model.modules()]
    for module, _ in flags:
        module.training = False
    try:
        yield
    finally:
        for table, entries in zip(tables, before, strict=True):
            for name in [name for name in table if name not in entries]:
                del table[name]
            table.update(entries)
        for container, contents in zip(kept, kept_before, strict=True):
            container.clear()
            if isinstance(container, dict):
                container.update(contents)
            else:
                container.extend(contents)
        for module, training in flags:
            module.training = training


def _attribute_tables(module: nn.Module) -> list[dict[str, Any]]:
    """The dicts that hold a module's attributes. (A scripted module keeps some outside them.)"""
    return [
        table
        for table in (vars(module), module._parameters, module._buffers, module._modules)
        if isinstance(table, dict)
    ]


def _trace(
    model: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Tensor],
    batch: int | None,
    strict: bool,
    all_sizes: bool,
) -> ExportedProgram:
    """Export a model.

    Args:
        model: in evaluation mode.
        args: the example's positional arguments.
        kwargs: its keyword arguments.
        batch: a dimension 0 of this length may have any length; None: all sizes are fixed to the example's.
        strict: trace Python itself. That takes longer and fails more often, but notices that ``len(x)`` may vary.
        all_sizes: leave all of `free_sizes.free_dimensions` free.
    """
    dynamic = ShapesCollection()  # type: ignore[no-untyped-call]

    def traced_input(x: Tensor) -> Tensor:
        free = set(free_sizes.free_dimensions(x)) if all_sizes else set()
        if batch is not None and x.dim() and len(x) == batch:
            free.add(0)
        if not free:
            return x
        # torch.export treats sizes 0 and 1 as constants. Detached, because the collection tells tensors by identity.
        x = torch.cat([x, x]) if batch == 1 and 0 in free else x.detach()
        if all_sizes:
            x = free_sizes.enlarged(x)
        dynamic[x] = dict.fromkeys(sorted(free), Dim.AUTO)
        return x

    example = tuple(map(traced_input, args)), {name: traced_input(x) for name, x in kwargs.items()}
    shapes = None if batch is None else dynamic
    with free_sizes.tracing() if all_sizes else nullcontext():
        return torch.export.export(model, *example, dynamic_shapes=shapes, strict=strict)


def _decomposed(program: ExportedProgram, chosen: Callable[[OpOverload], bool]) -> ExportedProgram:
    """A program with some of the operators that PyTorch defines by others replaced by those."""
    targets = {node.target for node in program.graph.nodes if isinstance(node.target, OpOverload)}
    # Operators that write are replaced elsewhere, and those that return sizes are read from the shapes.
    wanted = [op for op in targets if not op._schema.is_mutable and "sym_" not in op._schema.name and chosen(op)]
    if not wanted:
        return program
    known = torch.export.default_decompositions()
    table = {op: known[op] for op in wanted if op in known}
    replaced = program.run_decompositions(table) if table else program
    # Programs with effects, of checks such as that a matrix was invertible, have a token as an input.
    return program if replaced.graph_signature.input_tokens else replaced


def _functional(program: ExportedProgram) -> tuple[ExportedProgram, Mapping[fx.Node, OpOverload]]:
    """A program that writes nothing: it, and for its nodes that write in place the operators that replace them."""
    targets = functional_targets(program)
    if targets is None:
        # A tensor is written while other values share its memory. PyTorch can rewrite the program, which takes long.
        program = program.run_decompositions({})
        refuse_changed(program)
        targets = {}
    return program, targets


def _takes(program: ExportedProgram, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> bool:
    """Whether an example's sizes are those of a program, whose free sizes are all symbols."""
    for place, node in _input_nodes(program).items():
        example = args[place] if isinstance(place, int) else kwargs[place]
        for size, actual in zip(node.meta["val"].shape, example.shape, strict=True):
            expression = size.node.expr if isinstance(size, torch.SymInt) else size
            if not getattr(expression, "is_symbol", False) and expression != actual:
                return False
    return True


def _batch_symbol(program: ExportedProgram) -> Any:
    """The symbol of the batch size in a program's shapes; None if the program does not accept every size."""
    for node in _input_nodes(program).values():
        shape = node.meta["val"].shape
        if len(shape):
            if not isinstance(shape[0], torch.SymInt):
                return None
            symbol = shape[0].node.expr
            limits = program.range_constraints.get(symbol)
            if not symbol.is_symbol or (limits is not None and (limits.lower > 2 or limits.upper < UNBOUNDED_FROM)):
                return None
            return symbol
    return None


def _input_nodes(program: ExportedProgram) -> dict[int | str, fx.Node]:
    """The nodes of the arguments, by position or keyword."""
    assert program.call_spec.in_spec is not None
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    args, kwargs = tree_unflatten(list(program.graph_signature.user_inputs), program.call_spec.in_spec)
    return {place: nodes[name] for place, name in [*enumerate(args), *kwargs.items()]}


class _SymbolicShapes:
    """The symbolic shapes of a program, read as shapes for the example and for any batch size.

    Args:
        program: the exported program.
        args: the example's positional arguments.
        kwargs: its keyword arguments.
        batch: the symbol of the batch size; None if that is fixed.
        any_size: give the other free sizes names too, and integers their expressions.
    """

    def __init__(
        self,
        program: ExportedProgram,
        args: tuple[Tensor, ...],
        kwargs: Mapping[str, Tensor],
        batch: Any,
        any_size: bool,
    ) -> None:
        self.batch, self.any_size = batch, any_size
        self._example: dict[Any, int] = {}
        shapes = []
        for place, node in _input_nodes(program).items():
            example = args[place] if isinstance(place, int) else kwargs[place]
            shapes.append(node.meta["val"].shape)
            for size, actual in zip(shapes[-1], example.shape, strict=True):
                if isinstance(size, torch.SymInt):
                    self._example[size.node.expr] = actual
        self._names: dict[Any, str] = {} if batch is None else {batch: "N"}
        if any_size:
            self._names = free_sizes.names(shapes, self._names)
        self._symbols = {
            symbol: sympy.Symbol(name, integer=True, positive=True) for symbol, name in self._names.items()
        }

    def value(self, node: fx.Node) -> Value:
        """A node's output as a `Value`."""
        output = node.meta.get("val")
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        module = stack[-1][0] if stack else ""
        if not isinstance(output, Tensor):
            is_size = self.any_size and isinstance(output, torch.SymInt)
            return Value(node.name, (), None, (self._any_size(output),) if is_size else (), module)
        shape, sizes = tuple(map(self._example_size, output.shape)), tuple(map(self._any_size, output.shape))
        return Value(node.name, shape, output.dtype, sizes, module)

    def is_batch(self, node: fx.Node) -> bool:
        """Whether a node's output is the batch size, as a number."""
        output = node.meta.get("val")
        return self.batch is not None and isinstance(output, torch.SymInt) and output.node.expr == self.batch

    def _example_size(self, size: int | torch.SymInt) -> int:
        if isinstance(size, int):
            return size
        actual = size.node.expr.subs(self._example)
        return int(actual) if actual.is_number else -1

    def _any_size(self, size: Any) -> int | str:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        if expression.is_number:
            return int(expression)
        return str(expression.xreplace(self._symbols))


def _graph(
    program: ExportedProgram, targets: Mapping[fx.Node, OpOverload], shapes: _SymbolicShapes, *, batch: int | None
) -> Graph:
    """Convert an exported program to a graph of calls."""
    inputs = _input_nodes(program)
    constants = _constants_by_node(program)
    values: dict[fx.Node, Any] = {node: shapes.value(node) for node in inputs.values()}
    batched = next((v for v in values.values() if v.sizes[:1] == ("N",)), None)
    # Sizes are read from the inputs only: if one were read from another value, that value would seem to be used once
    # more and would not be fused.
    places = {size: (values[n], i) for n in inputs.values() for i, size in enumerate(values[n].sizes)}
    places = {name: place for name, place in places.items() if isinstance(name, str)}
    batch_size: Value | None = None
    ops: list[Call] = []

    def with_values(tree: Any) -> Any:
        return map_leaves(tree, lambda x: values[x] if isinstance(x, fx.Node) else x)

    outputs: Any = ()
    for node in program.graph.nodes:
        if node.op == "get_attr":
            values[node] = program.graph_module.get_submodule(str(node.target))
        elif node.op == "placeholder" and node not in values:
            values[node] = constants[node.name]
        elif node.op == "call_function" and shapes.is_batch(node):
            if batch_size is None:
                batch_size = shapes.value(node)
                ops.append(Call.of(torch.ops.aten.sym_size.int, (batched, 0), {}, batch_size))
            values[node] = batch_size
        elif node.op == "call_function" and (value := shapes.value(node)).dtype is None and value.sizes:
            values[node] = value
            ops.append(Call.of(free_sizes.evaluate, (value.sizes[0], places), {}, value))
        elif node.op == "call_function":
            values[node] = shapes.value(node)
            target, given = targets.get(node, node.target), (with_values(node.args), with_values(node.kwargs))
            if shapes.any_size and (filled := _filled(target, given, values[node])) is not None:
                target, given = filled
            ops.append(Call.of(target, *given, values[node]))
        elif node.op == "output":
            outputs = with_values(node.args[0])
    assert program.call_spec.out_spec is not None
    return Graph(
        inputs=tuple(values[node] for node in inputs.values()),
        keywords=tuple(place for place in inputs if isinstance(place, str)),
        ops=tuple(ops),
        outputs=tuple(outputs),
        out_spec=program.call_spec.out_spec,
        batch=batch,
    )


_FILL_VALUES = {"new_zeros": 0, "zeros_like": 0, "new_ones": 1, "ones_like": 1, "new_full": None, "full_like": None}


def _filled(target: Any, given: tuple[Any, Any], output: Value) -> tuple[Any, tuple[Any, Any]] | None:
    """A tensor of one number that is made like another, as one that reads nothing: then it is a constant."""
    name = target._schema.name.removeprefix("aten::") if isinstance(target, OpOverload) else ""
    if name not in _FILL_VALUES or not all(isinstance(size, int) for size in output.sizes):
        return None
    value = _FILL_VALUES[name]
    fill = arguments(target, *given)["fill_value"] if value is None else value
    if not isinstance(fill, (bool, int, float)):
        return None
    return torch.ops.aten.full.default, ((list(output.sizes), fill), {"dtype": output.dtype})


def _constants_by_node(program: ExportedProgram) -> dict[str, Any]:
    """Parameters, buffers and constants, by the names of their nodes."""
    signature = program.graph_signature
    stored = {**program.constants, **program.state_dict}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
        **signature.inputs_to_lifted_custom_objs,
    }
    return {
        node: stored[name].detach() if isinstance(stored[name], Tensor) else stored[name]
        for node, name in names.items()
    }
