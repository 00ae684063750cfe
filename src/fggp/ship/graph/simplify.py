"""From what was captured to what is worth compiling: known operations, few of them, norms and ReLUs fused."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload

from fggp.ship.graph.operations import Add, Affine, Call, Conv2d, Graph, Linear, Op, ReLU, Value, arguments, leaves
from fggp.ship.graph.recognise import recognise

aten = torch.ops.aten

# The most elements that what is computed from constants may have if it has more than they.
_LARGE = 1 << 20


@torch.no_grad()
def simplify(graph: Graph, *, own: bool = True) -> Graph:
    """The same network in fewer operations.

    What depends on nothing but constants is computed, what does nothing is dropped, evaluation-mode batch norms go
    into the convolution or linear layer before them, and biases, residual sums and ReLUs into the operation that
    makes what they work on, if nothing else sees that. Weights that are zero stay so, as +0.

    Args:
        graph: as captured.
        own: copy the constants that are the model's. Without, a caller who repacks weights must copy the others.
    """
    borrowed = {t.untyped_storage().data_ptr() for t in graph.constants() if _is_dense(t)}
    graph = _without_idle(_any_layout(_constants_folded(graph)))
    # What a call read may be dead once it is known for what it is (the batch size in a reshape), and what is dead
    # must not count as a use.
    graph = _without_dead(_recognised(graph))
    # Chains of affine maps first, so that what goes into a product is rounded once.
    for merge in (_compose, _merge):
        graph = _merged(graph, merge)
    graph = _rounded(graph)
    return _owning(graph, borrowed) if own else graph


def _constants_folded(graph: Graph) -> Graph:
    """Compute now what depends on constants alone, like the weight of a parametrised layer."""
    known: dict[Value, Any] = {}
    ops: list[Op] = []
    for op in graph.ops:
        op = op.reading(known)
        if isinstance(op, Call) and not op.inputs and _is_function(op.target):
            result = op.target(*op.args, **op.kwargs)
            given, made = (sum(x.numel() for x in leaves(t) if isinstance(x, Tensor)) for t in (op.args, result))
            if made <= max(_LARGE, given):
                known[op.output] = result
                continue
        ops.append(op)
    return replace(graph, ops=tuple(ops), outputs=_instead(graph.outputs, known))


def _is_function(target: Any) -> bool:
    """Whether a call gives the same at any time and does nothing else."""
    if target is operator.getitem:
        return True
    return (
        isinstance(target, OpOverload)
        and target.namespace == "aten"
        and torch.Tag.nondeterministic_seeded not in target.tags
        and bool(target._schema.returns)
    )


# What these return depends on how their argument lies in memory.
_LAYOUT_BOUND = frozenset(
    [aten.as_strided.default, aten.view.dtype, aten.view_as_complex.default, aten._unsafe_view.default]
)
_COPIES = frozenset([aten.contiguous.default, aten.clone.default])


def _any_layout(graph: Graph) -> Graph:
    """Let values lie in memory as they may: views become reshapes, which then need no contiguous copies."""
    ops = [
        Call.of(aten.reshape.default, op.args, op.kwargs, op.output)
        if isinstance(op, Call) and op.target is aten.view.default
        else op
        for op in graph.ops
    ]
    targets = [op.target for op in ops if isinstance(op, Call)]
    # What is not PyTorch's own, and what is inside a higher-order operator, may rely on contiguous arguments.
    if any(
        isinstance(t, HigherOrderOperator)
        or (isinstance(t, OpOverload) and t.namespace != "aten")
        or t in _LAYOUT_BOUND
        for t in targets
    ):
        return replace(graph, ops=tuple(ops))
    same: dict[Value, Any] = {}
    kept: list[Op] = []
    for op in ops:
        op = op.reading(same)
        if isinstance(op, Call) and op.target in _COPIES and op.inputs:
            same[op.output] = op.inputs[0]
        else:
            kept.append(op)
    return replace(graph, ops=tuple(kept), outputs=_instead(graph.outputs, same))


_CHECKS = frozenset(
    [
        "_assert_tensor_metadata",
        "_assert_scalar",
        "_assert_async",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
    ]
)
_IDLE = frozenset(["alias", "detach", "lift_fresh", "lift_fresh_copy", "resolve_conj", "resolve_neg"])
_DROPOUTS = frozenset(["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"])
# These do nothing when the shape stays the same.
_RESHAPES = frozenset(["reshape", "flatten", "expand", "expand_as", "view_as"])
_PADS = frozenset(["pad", "constant_pad_nd"])
_CASTS = frozenset(["to", "_to_copy", "type_as"])


def _without_idle(graph: Graph) -> Graph:
    """Drop what changes nothing, and checks of what tracing has made sure."""
    same: dict[Value, Any] = {}
    ops: list[Op] = []
    for op in graph.ops:
        op = op.reading(same)
        if isinstance(op, Call) and isinstance(op.target, OpOverload) and op.target.namespace == "aten":
            name = op.target._schema.name.removeprefix("aten::")
            if name in _CHECKS:
                continue
            if op.inputs and _is_idle(op, name):
                same[op.output] = op.inputs[0]
                continue
        ops.append(op)
    return replace(graph, ops=tuple(ops), outputs=_instead(graph.outputs, same))


def _is_idle(op: Call, name: str) -> bool:
    """Whether a call returns its first argument."""
    x, y = op.args[0] if op.args else None, op.output
    if not isinstance(x, Value) or x.dtype != y.dtype or x.sizes != y.sizes:
        return False
    given = arguments(op.target, op.args, op.kwargs)
    if name in _DROPOUTS:
        return not given["train"]
    if name == "slice":
        return bool(given["step"] == 1)
    if name in _PADS:
        return not any(given["pad"])
    return name in _IDLE or name in _CASTS or name in _RESHAPES


def _without_dead(graph: Graph) -> Graph:
    """Drop what nothing reads."""
    read = {x for x in graph.outputs if isinstance(x, Value)}
    ops = []
    for op in reversed(graph.ops):
        if op.output in read:
            read.update(op.inputs)
            ops.append(op)
    return replace(graph, ops=tuple(reversed(ops)))


def _recognised(graph: Graph) -> Graph:
    """Calls as operations that have names, where they have."""
    return replace(
        graph, ops=tuple(known for op in graph.ops for known in (recognise(op) if isinstance(op, Call) else [op]))
    )


def _merged(graph: Graph, merge: Callable[[Op, Op], Op | None]) -> Graph:
    """Merge operations with the one that makes what they alone read, as long as ``merge`` can.

    Args:
        graph: any.
        merge: from an operation and one that reads it, the one that does both; it takes the place of the latter, so
            that whatever else that reads is there. None if there is no such operation.
    """
    uses = graph.uses()
    makers: dict[Value, Op] = {}  # in order
    places: dict[Value, int] = {}
    for place, op in enumerate(graph.ops):
        # What was made last is merged, so that little waits in between.
        alone = [v for v in op.inputs if v in makers and uses[v] == 1]
        for v in sorted(alone, key=lambda v: -places[v]):
            both = merge(makers[v], op)
            if both is not None:
                del makers[v]
                op = both
                break
        makers[op.output] = op
        places[op.output] = place
    return replace(graph, ops=tuple(makers.values()))


def _compose(first: Op, then: Op) -> Op | None:
    """Two affine maps as one."""
    if isinstance(first, Affine) and isinstance(then, Affine) and not first.relu:
        scale, shift = first.scale * then.scale, first.shift * then.scale + then.shift
        if _is_finite(scale, shift):
            return replace(then, inputs=first.inputs, scale=scale, shift=shift)
    return None


def _merge(first: Op, then: Op) -> Op | None:
    """Whatever can follow in one operation."""
    if isinstance(then, ReLU) and isinstance(first, (Conv2d, Linear, Add, Affine)):
        return replace(first, output=then.output, relu=True)
    if isinstance(first, (Conv2d, Linear)) and not first.relu and first.residual is None:
        if isinstance(then, Affine):
            return _folded(first, then)
        if isinstance(then, Add) and not then.relu:
            (residual,) = (v for v in then.inputs if v is not first.output)
            return replace(first, inputs=(*first.inputs, residual), output=then.output)
    return None


def _folded(product: Conv2d | Linear, affine: Affine) -> Op | None:
    """A product with the affine map after it in its weights, computed in float64."""
    if isinstance(product, Linear) and len(product.output.shape) != 2:
        return None  # the map is one of dimension 1, the product of the last
    scale = affine.scale.view(-1, *(1 for _ in product.weight.shape[1:]))
    # Rounded as it is written, without a float64 copy. A negative scale makes −0 of a pruned weight, 0 is added to
    # have +0 again.
    weight = torch.mul(product.weight, scale, out=torch.empty_like(product.weight)).add_(0.0)
    bias = affine.shift if product.bias is None else product.bias * affine.scale + affine.shift
    bias = bias.float()
    if not (_is_finite(weight, bias)):
        return None
    return replace(product, output=affine.output, weight=weight, bias=bias, relu=affine.relu)


def _is_finite(*tensors: Tensor) -> bool:
    return all(bool(torch.stack(t.float().aminmax()).isfinite().all()) for t in tensors)


def _rounded(graph: Graph) -> Graph:
    """Affine maps in float32."""
    return replace(
        graph, ops=tuple(op.holding(torch.Tensor.float) if isinstance(op, Affine) else op for op in graph.ops)
    )


def _owning(graph: Graph, borrowed: set[int]) -> Graph:
    """Copies instead of what shares these storages with the model; weights of products in row-major order."""
    copies: dict[Any, Tensor] = {}

    def own(t: Tensor) -> Tensor:
        if not _is_dense(t):
            return t.clone()
        storage = t.untyped_storage()
        if storage.data_ptr() not in borrowed:
            return t
        place = (storage.data_ptr(), t.storage_offset(), t.shape, t.stride(), t.dtype)
        if place not in copies:
            # Copying an expanded tensor as such would write it out.
            expanded = t.numel() * t.element_size() > storage.nbytes()
            copies[place] = _copied_expanded(t) if expanded else t.clone()
        return copies[place]

    def owned(op: Op) -> Op:
        op = op.holding(own)
        return op.holding(Tensor.contiguous) if isinstance(op, (Conv2d, Linear)) else op

    return replace(
        graph,
        ops=tuple(map(owned, graph.ops)),
        outputs=tuple(own(x) if isinstance(x, Tensor) else x for x in graph.outputs),
    )


def _copied_expanded(t: Tensor) -> Tensor:
    whole = t.as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)
    return whole.clone().as_strided(t.shape, t.stride(), t.storage_offset())


def _is_dense(t: Tensor) -> bool:
    return type(t) is Tensor and t.layout == torch.strided


def _instead(outputs: tuple[Any, ...], known: dict[Value, Any]) -> tuple[Any, ...]:
    return tuple(known.get(x, x) if isinstance(x, Value) else x for x in outputs)
