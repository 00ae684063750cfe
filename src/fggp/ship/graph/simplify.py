"""Simplifying a captured graph for compilation: as few known operations as possible, norms and activations fused."""

from __future__ import annotations

import operator
from collections.abc import Callable, Container
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload

from fggp.ship.graph.calls import Call, arguments, leaves
from fggp.ship.graph.channels import compose_channels, recognise_channels
from fggp.ship.graph.operations import Activate, Add, Affine, Conv2d, Gate, Graph, Linear, Op, Value
from fggp.ship.graph.recognise import recognise

aten = torch.ops.aten

# A result computed from constants alone is folded if it has at most this number of elements, or no more than they have.
FOLDED_ELEMENTS_MAX = 1 << 20


@torch.no_grad()
def simplify(graph: Graph, *, copy_constants: bool = True) -> Graph:
    """The same network in fewer operations.

    Computes what depends on constants alone, and drops operations without effect. Folds evaluation-mode batch norms
    into the convolution or linear layer before them. Fuses biases, residual sums and activations into the operation
    whose output they read, if nothing else reads it. Zero weights stay zero, as +0.

    Args:
        graph: as captured.
        copy_constants: copy the constants that share memory with the model. If False, later changes of the model's
            weights reach the graph, unless the caller copies them.
    """
    model_storages = {t.untyped_storage().data_ptr() for t in graph.constants() if _is_plain_strided(t)}
    graph = _without_no_ops(_without_layout_changes(_constants_folded(graph)))
    # A recognised call may no longer read one of its inputs (the batch size in a reshape). An operation that only it
    # read must be dropped first, because it would count as a use.
    graph = _without_unused(recognise_channels(_with_known_operations(graph)))
    graph = _without_unused(compose_channels(graph))
    # Chains of affine maps first, so that folding into a product rounds once.
    for merge in (_compose_affine, _fuse):
        graph = _merge_into_producers(graph, merge)
    graph = _affine_in_float32(graph)
    return with_own_constants(graph, model_storages) if copy_constants else graph


def _constants_folded(graph: Graph) -> Graph:
    """Compute now what depends on constants alone, such as the weight of a parametrised layer."""
    known: dict[Value, Any] = {}
    ops: list[Op] = []
    for op in graph.ops:
        op = op.with_inputs(known)
        if isinstance(op, Call) and not op.inputs and (_is_function(op.target) or _is_idle_dropout(op)):
            result = op.target(*op.args, **op.kwargs)
            given, made = (sum(x.numel() for x in leaves(t) if isinstance(x, Tensor)) for t in (op.args, result))
            if made <= max(FOLDED_ELEMENTS_MAX, given):
                known[op.output] = result
                continue
        ops.append(op)
    return replace(graph, ops=tuple(ops), outputs=_replaced(graph.outputs, known))


def _is_function(target: Any) -> bool:
    """Whether a call always returns the same result, and has no other effect."""
    if target is operator.getitem:
        return True
    return (
        isinstance(target, OpOverload)
        and target.namespace == "aten"
        and torch.Tag.nondeterministic_seeded not in target.tags
        and bool(target._schema.returns)
    )


def _is_idle_dropout(op: Call) -> bool:
    """Whether a call is a dropout in evaluation mode, which returns its argument."""
    name = op.target._schema.name.removeprefix("aten::") if isinstance(op.target, OpOverload) else ""
    return name in _DROPOUTS and not arguments(op.target, op.args, op.kwargs)["train"]


# The results of these depend on the memory layout of their argument.
_LAYOUT_DEPENDENT = frozenset(
    [aten.as_strided.default, aten.view.dtype, aten.view_as_complex.default, aten._unsafe_view.default]
)
_COPIES = frozenset([aten.contiguous.default, aten.clone.default])


def _without_layout_changes(graph: Graph) -> Graph:
    """Allow any memory layout of values: views become reshapes, and copies that only change the layout are dropped."""
    ops = [
        Call.of(aten.reshape.default, op.args, op.kwargs, op.output)
        if isinstance(op, Call) and op.target is aten.view.default
        else op
        for op in graph.ops
    ]
    targets = [op.target for op in ops if isinstance(op, Call)]
    # Operators that are not PyTorch's own, and operators inside a higher-order one, may rely on contiguous arguments.
    if any(
        isinstance(t, HigherOrderOperator)
        or (isinstance(t, OpOverload) and t.namespace != "aten")
        or t in _LAYOUT_DEPENDENT
        for t in targets
    ):
        return replace(graph, ops=tuple(ops))
    same: dict[Value, Any] = {}
    kept: list[Op] = []
    for op in ops:
        op = op.with_inputs(same)
        if isinstance(op, Call) and op.target in _COPIES and op.inputs:
            same[op.output] = op.inputs[0]
        else:
            kept.append(op)
    return replace(graph, ops=tuple(kept), outputs=_replaced(graph.outputs, same))


_TRACING_CHECKS = frozenset(
    [
        "_assert_tensor_metadata",
        "_assert_scalar",
        "_assert_async",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
    ]
)
_NO_OPS = frozenset(["alias", "detach", "lift_fresh", "lift_fresh_copy", "resolve_conj", "resolve_neg"])
_DROPOUTS = frozenset(["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"])
# These do nothing when the shape stays the same.
_RESHAPES = frozenset(["reshape", "flatten", "expand", "expand_as", "view_as"])
_PADS = frozenset(["pad", "constant_pad_nd"])
_CASTS = frozenset(["to", "_to_copy", "type_as"])


def _without_no_ops(graph: Graph) -> Graph:
    """Drop operations that return their argument, and checks of what tracing has established."""
    same: dict[Value, Any] = {}
    ops: list[Op] = []
    for op in graph.ops:
        op = op.with_inputs(same)
        if isinstance(op, Call) and isinstance(op.target, OpOverload) and op.target.namespace == "aten":
            name = op.target._schema.name.removeprefix("aten::")
            if name in _TRACING_CHECKS:
                continue
            if op.inputs and _is_no_op(op, name):
                same[op.output] = op.inputs[0]
                continue
        ops.append(op)
    return replace(graph, ops=tuple(ops), outputs=_replaced(graph.outputs, same))


def _is_no_op(op: Call, name: str) -> bool:
    """Whether a call returns its first argument."""
    x, y = op.args[0] if op.args else None, op.output
    if not isinstance(x, Value) or x.dtype != y.dtype or x.sizes != y.sizes:
        return False
    if name in _DROPOUTS:
        return _is_idle_dropout(op)
    given = arguments(op.target, op.args, op.kwargs)
    if name == "slice":
        return bool(given["step"] == 1)
    if name in _PADS:
        return not any(given["pad"])
    return name in _NO_OPS or name in _CASTS or name in _RESHAPES


def _without_unused(graph: Graph) -> Graph:
    """Drop operations whose output is not read."""
    read = {x for x in graph.outputs if isinstance(x, Value)}
    ops = []
    for op in reversed(graph.ops):
        if op.output in read:
            read.update(op.inputs)
            ops.append(op)
    return replace(graph, ops=tuple(reversed(ops)))


def _with_known_operations(graph: Graph) -> Graph:
    """Replace calls by known operations where they are recognised."""
    return replace(
        graph, ops=tuple(known for op in graph.ops for known in (recognise(op) if isinstance(op, Call) else [op]))
    )


def _merge_into_producers(graph: Graph, merge: Callable[[Op, Op], Op | None]) -> Graph:
    """Merge each operation with its producer: the operation that computes its input, if nothing else reads that input.

    Args:
        graph: any.
        merge: called with a producer and the operation that reads its output. Returns one operation that does both, or
            None if there is none. It takes the place of the reader: there, the reader's other inputs are computed.
    """
    uses = graph.uses()
    producers: dict[Value, Op] = {}  # in order
    places: dict[Value, int] = {}
    for place, op in enumerate(graph.ops):
        # If two inputs could be merged, take the one computed last: then no operation moves far.
        read_only_here = [v for v in op.inputs if v in producers and uses[v] == 1]
        for v in sorted(read_only_here, key=lambda v: -places[v]):
            merged = merge(producers[v], op)
            if merged is not None:
                del producers[v]
                op = merged
                break
        producers[op.output] = op
        places[op.output] = place
    return replace(graph, ops=tuple(producers.values()))


def _compose_affine(first: Op, then: Op) -> Op | None:
    """Two affine maps as one."""
    if isinstance(first, Affine) and isinstance(then, Affine) and first.activation is None:
        scale, shift = first.scale * then.scale, first.shift * then.scale + then.shift
        if _is_finite(scale, shift):
            return replace(then, inputs=first.inputs, scale=scale, shift=shift)
    return None


def _fuse(first: Op, then: Op) -> Op | None:
    """An activation, an affine map or a residual sum, fused into the operation before it."""
    if not isinstance(first, (Conv2d, Linear, Add, Affine, Gate)) or first.activation is not None:
        return None
    if isinstance(then, Activate):
        return replace(first, output=then.output, activation=then.activation)
    if isinstance(first, (Conv2d, Linear)) and first.residual is None:
        if isinstance(then, Affine):
            return _fold_affine(first, then)
        if isinstance(then, Add) and then.activation is None:
            (residual,) = (v for v in then.inputs if v is not first.output)
            return replace(first, inputs=(*first.inputs, residual), output=then.output)
    return None


def _fold_affine(product: Conv2d | Linear, affine: Affine) -> Op | None:
    """A product with the affine map after it folded into its weights, computed in float64."""
    if isinstance(product, Linear) and len(product.output.shape) != 2:
        return None  # the affine map acts on dimension 1, the product on the last one
    scale = affine.scale.view(-1, *(1 for _ in product.weight.shape[1:]))
    # A few channels at a time, because PyTorch makes float64 copies of what it multiplies. A negative scale turns a
    # pruned weight into −0, and adding 0 makes it +0 again.
    weight = torch.empty_like(product.weight)
    for given, factor, folded in zip(*(torch.split(t, 16) for t in (product.weight, scale, weight)), strict=True):
        torch.mul(given, factor, out=folded).add_(0.0)
    bias = affine.shift if product.bias is None else product.bias * affine.scale + affine.shift
    bias = bias.float()
    if not (_is_finite(weight, bias)):
        return None
    return replace(product, output=affine.output, weight=weight, bias=bias, activation=affine.activation)


def _is_finite(*tensors: Tensor) -> bool:
    return all(bool(torch.stack(t.float().aminmax()).isfinite().all()) for t in tensors)


def _affine_in_float32(graph: Graph) -> Graph:
    """Round affine maps to float32."""
    return replace(
        graph, ops=tuple(op.with_constants(torch.Tensor.float) if isinstance(op, Affine) else op for op in graph.ops)
    )


def with_own_constants(graph: Graph, storages: Container[int] | None = None) -> Graph:
    """The same graph with copies of its constants; weights of products become contiguous.

    Args:
        graph: any.
        storages: the addresses of the storages whose constants are copied; None: all are.
    """
    copies: dict[Any, Tensor] = {}

    def owned(t: Tensor) -> Tensor:
        if not _is_plain_strided(t):
            return t.clone()
        storage = t.untyped_storage()
        if storages is not None and storage.data_ptr() not in storages:
            return t
        key = (storage.data_ptr(), t.storage_offset(), t.shape, t.stride(), t.dtype)
        if key not in copies:
            # clone() of an expanded tensor would allocate all its elements.
            expanded = t.numel() * t.element_size() > storage.nbytes()
            copies[key] = _copy_expanded(t) if expanded else t.clone()
        return copies[key]

    def with_owned(op: Op) -> Op:
        op = op.with_constants(owned)
        return op.with_constants(Tensor.contiguous) if isinstance(op, (Conv2d, Linear)) else op

    return replace(
        graph,
        ops=tuple(map(with_owned, graph.ops)),
        outputs=tuple(owned(x) if isinstance(x, Tensor) else x for x in graph.outputs),
    )


def _copy_expanded(t: Tensor) -> Tensor:
    storage = t.as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)
    return storage.clone().as_strided(t.shape, t.stride(), t.storage_offset())


def _is_plain_strided(t: Tensor) -> bool:
    return type(t) is Tensor and t.layout == torch.strided


def _replaced(outputs: tuple[Any, ...], known: dict[Value, Any]) -> tuple[Any, ...]:
    return tuple(known.get(x, x) if isinstance(x, Value) else x for x in outputs)
