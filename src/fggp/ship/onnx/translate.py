"""From an ONNX model to a graph of PyTorch's operators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from torch.utils._pytree import tree_flatten

from fggp.ship.graph.operations import Graph, Value
from fggp.ship.network.description import Inexpressible, UnsupportedError
from fggp.ship.onnx.builder import Builder
from fggp.ship.onnx.folding import computed_sizes, folded
from fggp.ship.onnx.functions import body_of, bound, schema_of
from fggp.ship.onnx.names import named_sizes
from fggp.ship.onnx.nodes import Node
from fggp.ship.onnx.operands import Constant, Operand, Running, Symbolic, file_dtype
from fggp.ship.onnx.operators import HANDLERS
from fggp.ship.onnx.read import as_array, sparse_array
from fggp.ship.onnx.sizes import Size, free_size

_NO_OPERATOR = "fggp does not know this operator"


@dataclass(frozen=True)
class Translated:
    """A model as a graph.

    Args:
        graph: not simplified.
        builder: what it was written with.
        inputs: their names.
        outputs: their names.
        operators: the ONNX operator at each place of the graph's values.
    """

    graph: Graph
    builder: Builder
    inputs: list[str]
    outputs: list[str]
    operators: Mapping[str, str]


class _Scope:
    """The values of a graph by name, and those of the graphs around it."""

    def __init__(self, opsets: Mapping[str, int], outer: _Scope | None = None) -> None:
        self.opsets = opsets
        self.known: dict[str, Operand | None] = {}
        self.outer = outer

    def get(self, name: str) -> Operand | None:
        """A value; None if it could not be computed, because something before it is not supported.

        Raises:
            Inexpressible: the file does not define it.
        """
        if name in self.known:
            return self.known[name]
        if self.outer is not None:
            return self.outer.get(name)
        raise Inexpressible(f"it reads {name!r}, which the file does not define")


class _Unknown(Exception):
    """A node reads something that could not be computed."""


class Translation:
    """A model that is being translated.

    Args:
        model: as `read` returned it.
        fixed: numbers for free sizes, and values for inputs, by name.
        same: for free sizes what they turned out to be: a number, or another free size.
    """

    def __init__(self, model: onnx.ModelProto, fixed: Mapping[str, Any], same: Mapping[str, int | str]) -> None:
        self.b = Builder()
        self.found: list[tuple[str, str, str]] = []
        self.operators: dict[str, str] = {}
        self._model = model
        self._fixed = fixed
        self._same = same
        self._from: dict[Value, frozenset[str]] = {}
        self._functions = {(f.domain, f.name): f for f in model.functions}

    def run(self) -> Translated:
        """Translate.

        Raises:
            UnsupportedError: naming everything that is not supported.
        """
        graph = self._model.graph
        scope = _Scope({o.domain if o.domain != "ai.onnx" else "": o.version for o in self._model.opset_import})
        inputs = self._inputs(scope)
        names = [name for name, x in scope.known.items() if x in inputs]
        self._graph(graph, scope)
        outputs: dict[str, Any] = {}
        for output in graph.output:
            x = scope.get(output.name)
            if x is not None:
                self.b.place = ""
                outputs[output.name] = self.b.argument(x)
        if self.found:
            raise UnsupportedError(list(dict.fromkeys(self.found)))
        leaves, spec = tree_flatten(outputs)
        values = tuple(x.value for x in inputs)
        result = Graph(values, tuple(v.name for v in values), tuple(self.b.ops), tuple(leaves), spec)
        return Translated(result, self.b, names, list(outputs), self.operators)

    def _inputs(self, scope: _Scope) -> list[Running]:
        graph = self._model.graph
        stored = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        used: set[str] = set()
        sizes_of_fixed: dict[str, tuple[int, str]] = {}  # of free sizes, the number and the input that has it
        named = named_sizes([v for v in graph.input if v.name not in stored])
        inputs = []
        for v in graph.input:
            if v.name in stored:
                continue
            kind = v.type.tensor_type
            dtype = file_dtype(kind.elem_type)
            if v.type.WhichOneof("value") != "tensor_type" or dtype is None:
                self.found.append(
                    (f"the input {v.name!r}", "", "it is no tensor of floats, bools or whole numbers that fit int64")
                )
                scope.known[v.name] = None
                continue
            if v.name in self._fixed:
                used.add(v.name)
                constant = self._fixed_input(v, named[v.name] if kind.HasField("shape") else None)
                if kind.HasField("shape"):
                    used |= self._bind(v, named[v.name], constant.array.shape, sizes_of_fixed)
                scope.known[v.name] = constant
                continue
            if not kind.HasField("shape"):
                self.found.append((f"the input {v.name!r}", "", "the file does not tell its number of dimensions"))
                scope.known[v.name] = None
                continue
            sizes: list[Size] = []
            for name, size in named[v.name]:
                if name in self._fixed:
                    used.add(name)
                    size = self._fixed_size(name)
                if size is None:
                    size, name = self._settled(name)
                if size is None:
                    symbol = free_size(name)
                    self.b.free += [symbol] if symbol not in self.b.free else []
                    sizes.append(symbol)
                else:
                    sizes.append(size)
            x = self.b.value(sizes, dtype)
            scope.known[v.name] = x
            self._from[x.value] = frozenset([v.name])
            inputs.append(x)
        if unknown := [name for name in self._fixed if name not in used]:
            names = sorted({name for sizes in named.values() for name, size in sizes if size is None} | set(named))
            raise ValueError(f"fixed has {unknown[0]!r}; the inputs and free sizes are {', '.join(names)}")
        return inputs

    def _fixed_input(self, v: onnx.ValueInfoProto, shape: Sequence[tuple[str, int | None]] | None) -> Constant:
        """An input that becomes a constant."""
        dtype = onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
        array = np.asarray(self._fixed[v.name])
        exact = dtype.kind not in "iub" or np.array_equal(array.astype(dtype), array)
        if array.dtype.kind not in "fiub" or not exact:
            raise ValueError(f"fixed[{v.name!r}] is {self._fixed[v.name]!r}; the input is of type {dtype}")
        wanted = None if shape is None else [name if size is None else size for name, size in shape]
        if wanted is not None and (
            len(wanted) != array.ndim
            or any(isinstance(size, int) and size != had for size, had in zip(wanted, array.shape, strict=True))
        ):
            raise ValueError(f"fixed[{v.name!r}] has the shape {list(array.shape)}; the input's is {wanted}")
        return Constant(as_array(array.astype(dtype)), v.name)

    def _bind(
        self,
        v: onnx.ValueInfoProto,
        named: Sequence[tuple[str, int | None]],
        shape: Sequence[int],
        known: dict[str, tuple[int, str]],
    ) -> set[str]:
        """Check that the free sizes of a fixed input are those that `fixed` and other fixed inputs have.

        Args:
            v: the input.
            named: its dimensions' names and sizes.
            shape: of the constant that it becomes.
            known: the free sizes of the fixed inputs before it; those of this one are added.

        Returns:
            The names among them that `fixed` has.
        """
        used = set()
        for (name, size), had, d in zip(named, shape, v.type.tensor_type.shape.dim, strict=True):
            if size is not None:
                continue
            if name in self._fixed:
                used.add(name)
                wanted, why = self._fixed_size(name), f"fixed[{name!r}]"
            elif d.dim_param:
                wanted, where = known.setdefault(name, (had, v.name))
                why = f"that of fixed[{where!r}]"
            else:
                continue  # a name that the file does not give says nothing of other inputs
            if had != wanted:
                raise ValueError(
                    f"fixed[{v.name!r}] has the shape {list(shape)}, whose size {name} is {had}; it must be {wanted}, "
                    f"as {why} is"
                )
        return used

    def _fixed_size(self, name: str) -> int:
        size = self._fixed[name]
        number = isinstance(size, (int, float, np.integer, np.floating)) and not isinstance(size, bool)
        if not number or not size >= 1 or size % 1:
            raise ValueError(f"fixed[{name!r}] is {size!r}; a size is a whole number of at least 1")
        return int(size)

    def _settled(self, name: str) -> tuple[int | None, str]:
        """What a free size turned out to be: its number if it has one, and the free size that it is."""
        known: int | str = name
        while isinstance(known, str) and known in self._same:
            known = self._same[known]
        return (known, name) if isinstance(known, int) else (None, known)

    def _graph(self, graph: onnx.GraphProto, scope: _Scope) -> None:
        for t in graph.initializer:
            scope.known[t.name] = self._stored(as_array(onnx.numpy_helper.to_array(t)), t.name)
        for s in graph.sparse_initializer:
            scope.known[s.values.name] = self._stored(as_array(sparse_array(s)), s.values.name)
        self._nodes(graph.node, scope)

    def _stored(self, array: Any, name: str) -> Constant:
        constant = Constant(array, name)
        self.b.names[id(constant)] = name
        return constant

    def _nodes(self, nodes: Iterable[onnx.NodeProto], scope: _Scope) -> None:
        for proto in nodes:
            place = proto.name or next((name for name in proto.output if name), proto.op_type)
            outer, self.b.place = self.b.place, place
            operator = f"{proto.domain}.{proto.op_type}" if proto.domain else proto.op_type
            self.operators[place] = operator
            results: Sequence[Operand | None] = [None] * len(proto.output)
            try:
                results = self._node(proto, scope)
            except _Unknown:
                pass
            except Inexpressible as error:
                self.found.append((operator, place, str(error)))
            sources = frozenset().union(*(self._sources(scope.known.get(name)) for name in proto.input))
            for name, result in zip(proto.output, results, strict=False):
                if name:
                    scope.known[name] = result
                    if isinstance(result, Running):
                        self._from.setdefault(result.value, sources)
            self.b.place = outer

    def _sources(self, x: Operand | None) -> frozenset[str]:
        """The inputs and free sizes that a value depends on."""
        if isinstance(x, Symbolic):
            return frozenset(str(symbol) for number in x.array.reshape(-1) for symbol in number.free_symbols)
        return self._from.get(x.value, frozenset()) if isinstance(x, Running) else frozenset()

    def _node(self, proto: onnx.NodeProto, scope: _Scope) -> Sequence[Operand | None]:
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        inputs = [scope.get(name) if name else None for name in proto.input]
        if any(name and x is None for name, x in zip(proto.input, inputs, strict=True)):
            if not self._knows(proto, domain, scope):
                raise Inexpressible(_NO_OPERATOR)
            raise _Unknown
        if function := self._functions.get((proto.domain, proto.op_type)):
            return self._function(function, proto, inputs)
        opset = scope.opsets.get(domain, 1)
        n = Node(proto, opset, inputs)
        if proto.op_type == "Constant" and not domain:
            return (self._constant(n),)
        if proto.op_type == "If" and not domain:
            return self._if(n, scope)
        if not domain:
            if (constants := folded(n)) is not None:
                return constants
            if (sizes := computed_sizes(n)) is not None:
                return (sizes,)
        handler = HANDLERS.get(proto.op_type) if not domain else None
        if handler is None:
            body = body_of(proto, opset, inputs)
            if body is None:
                raise Inexpressible(_NO_OPERATOR)
            return self._function(body, proto, inputs)
        result = handler(self.b, n)
        results = result if isinstance(result, tuple) else (result,)
        if any(name for name in proto.output[len(results) :]):
            raise Inexpressible(f"its result {len(results)} is used, and only those before it are computed")
        return results

    def _knows(self, proto: onnx.NodeProto, domain: str, scope: _Scope) -> bool:
        """Whether a node's operator is one that can be expressed."""
        if (proto.domain, proto.op_type) in self._functions or proto.op_type == "If":
            return True
        schema = schema_of(proto.op_type, domain, scope.opsets.get(domain, 1))
        defined = schema is not None and (schema.has_function or schema.has_context_dependent_function)
        return defined or (not domain and proto.op_type in HANDLERS)

    def _constant(self, n: Node) -> Operand:
        if "sparse_value" in n.attributes:
            return self._stored(as_array(sparse_array(n.get("sparse_value"))), n.proto.output[0])
        if "value" in n.attributes:
            return self._stored(as_array(onnx.numpy_helper.to_array(n.get("value"))), n.proto.output[0])
        for name, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64)):
            if name in n.attributes:
                return Constant(np.asarray(n.get(name), dtype))
        if "value_ints" in n.attributes:
            return Constant(np.asarray(n.get("value_ints"), np.int64))
        raise Inexpressible("it is a text")

    def _if(self, n: Node, scope: _Scope) -> Sequence[Operand | None]:
        condition = n.input(0)
        if not isinstance(condition, Constant):
            sources = " and ".join(sorted(self._sources(condition)))
            raise Inexpressible(f"its condition depends on {sources}: give it a value: `fixed`, or --fix NAME=NUMBER")
        branch = n.get("then_branch" if condition.array.any() else "else_branch")
        inner = _Scope(scope.opsets, scope)
        self._graph(branch, inner)
        return [inner.get(output.name) for output in branch.output]

    def _function(
        self, function: onnx.FunctionProto, proto: onnx.NodeProto, inputs: Sequence[Operand | None]
    ) -> Sequence[Operand | None]:
        """The nodes of a function, in its place."""
        opsets = {o.domain if o.domain != "ai.onnx" else "": o.version for o in function.opset_import}
        scope = _Scope(opsets)
        for name, x in zip(function.input, [*inputs, *[None] * len(function.input)], strict=False):
            scope.known[name] = x
        given = {a.name: a for a in [*function.attribute_proto, *proto.attribute]}
        place = self.b.place
        left_out = {name for name, x in scope.known.items() if x is None}
        for i, node in enumerate(bound(function.node, given)):
            node.input[:] = ["" if name in left_out else name for name in node.input]
            node.name = f"{place}/{node.name or f'{node.op_type}_{i}'}"
            self._nodes([node], scope)
        return [scope.get(name) for name in function.output]
