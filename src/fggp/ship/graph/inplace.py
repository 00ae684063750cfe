"""Replacing operators that write into their argument by operators that return a new tensor, where that is safe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from fggp.ship.graph.calls import arguments

aten = torch.ops.aten

# For these, `x.op_(y)` and `x.op(y)` give the same dtype, provided that all arguments have the same floating-point
# dtype. (For `eq` they differ: `x.eq(y)` is bool.)
# fmt: off
_SAME_DTYPE_WITHOUT_UNDERSCORE = frozenset([
    "relu_", "relu6_", "hardtanh_", "hardswish_", "hardsigmoid_", "silu_", "mish_", "sigmoid_", "tanh_", "gelu_",
    "leaky_relu_", "elu_", "selu_", "celu_", "threshold_", "add_", "sub_", "mul_", "div_", "neg_", "abs_", "exp_",
    "log_", "sqrt_", "rsqrt_", "pow_", "clamp_", "clamp_min_", "clamp_max_", "addcmul_", "addcdiv_", "lerp_",
])
# fmt: on
# These write nothing in evaluation mode.
_WRITES_NOTHING_IN_EVALUATION = frozenset(
    ["dropout_", "feature_dropout_", "alpha_dropout_", "feature_alpha_dropout_", "detach_"]
)


class MutationError(ValueError):
    """A network changes its inputs, parameters or buffers when it is run in evaluation mode."""


def functional_targets(program: ExportedProgram) -> dict[fx.Node, OpOverload] | None:
    """For every node that writes in place, the operator that computes the same result and writes nothing.

    Returns:
        The operators by node; None if replacing them may change the result.

    Raises:
        MutationError: the network changes an input, a parameter or a buffer.
    """
    nodes = list(program.graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    sharing = _nodes_sharing_memory(nodes)
    targets: dict[fx.Node, OpOverload] = {}
    for node in nodes:
        if any(_mutates(inner) for inner in _inner_nodes(node)):
            return None
        _refuse_running_statistics(program, node)
        if not _mutates(node):
            continue
        # An out= variant does not write into its first argument, and some operators have no variant without underscore.
        # Neither kind is in the two lists above.
        name = node.target._schema.name.removeprefix("aten::")
        functional = getattr(getattr(aten, name.rstrip("_"), None), node.target._overloadname, None)
        written = node.args[0]
        writes_nothing = name in _WRITES_NOTHING_IN_EVALUATION and not _is_training_dropout(node)
        if not writes_nothing:
            earlier = [n for n in sharing[written] if order[n] < order[node]]
            for other in earlier:
                _refuse_if_of_the_model(program, other, f"{node.target}")
            if name not in _SAME_DTYPE_WITHOUT_UNDERSCORE or not _has_one_float_dtype(node):
                return None
            if any(n.op == "placeholder" for n in earlier):
                return None
            if any(order[user] > order[node] for other in earlier for user in other.users):
                return None
        if functional is None:
            return None
        targets[node] = functional
    return targets


def refuse_changed(program: ExportedProgram) -> None:
    """Refuse a program whose in-place operators were all replaced, and which still changes an input or a buffer.

    Raises:
        MutationError: it does.
    """
    signature = program.graph_signature
    for name in signature.buffers_to_mutate.values():
        raise MutationError(_mutation_message("buffer", name))
    for name in signature.user_inputs_to_mutate.values():
        raise MutationError(_mutation_message("input", name))
    # The oldest supported PyTorch has no list of parameters here.
    for name in getattr(signature, "parameters_to_mutate", {}).values():
        raise MutationError(_mutation_message("parameter", name))


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _inner_nodes(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes of the graph that this node passes to a higher-order operator."""
    if node.op == "get_attr":
        held: Any = node.graph.owning_module
        for part in str(node.target).split("."):
            held = getattr(held, part)
        if isinstance(held, fx.GraphModule):
            for module in held.modules():
                if isinstance(module, fx.GraphModule):
                    yield from module.graph.nodes


def _nodes_sharing_memory(nodes: list[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For each node, all nodes whose tensors may share memory with its own.

    The fake tensors of tracing have storages, which views share as real tensors do. In addition, an operator whose
    schema says that it returns a view is assumed to.
    """
    groups: dict[fx.Node, list[fx.Node]] = {}
    of_storage: dict[StorageWeakRef, fx.Node] = {}
    for node in nodes:
        groups[node] = [node]
        relatives = []
        for tensor in tree_leaves(node.meta.get("val")):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
                relatives.append(of_storage.setdefault(storage, node))
        if isinstance(node.target, OpOverload):
            returns = any(r.alias_info is not None for r in node.target._schema.returns)
            relatives += node.all_input_nodes if returns else []
        elif node.op == "call_function":  # getitem and higher-order operators: nothing is known
            relatives += node.all_input_nodes
        for relative in relatives:
            if groups[relative] is not groups[node]:
                groups[node].extend(groups[relative])
                for n in groups[node]:
                    groups[n] = groups[node]
    return groups


def _is_training_dropout(node: fx.Node) -> bool:
    """Whether a dropout is in training mode."""
    return bool(arguments(node.target, node.args, node.kwargs).get("train"))


def _has_one_float_dtype(node: fx.Node) -> bool:
    dtypes = {n.meta["val"].dtype for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)}
    return len(dtypes) == 1 and all(dtype.is_floating_point for dtype in dtypes)


def _refuse_if_of_the_model(program: ExportedProgram, node: fx.Node, operator: str) -> None:
    signature = program.graph_signature
    for kind, names in (
        ("parameter", signature.inputs_to_parameters),
        ("buffer", signature.inputs_to_buffers),
        ("input", {name: name for name in signature.user_inputs if isinstance(name, str)}),
    ):
        if node.name in names:
            raise MutationError(_mutation_message(kind, names[node.name], operator))


def _refuse_running_statistics(program: ExportedProgram, node: fx.Node) -> None:
    """Batch and instance norm update their running statistics without saying so in their signature."""
    if node.target not in (aten.batch_norm.default, aten.instance_norm.default):
        return
    given = arguments(node.target, node.args, node.kwargs)
    if given.get("training") or given.get("use_input_stats"):
        for statistic in (given["running_mean"], given["running_var"]):
            if isinstance(statistic, fx.Node):
                _refuse_if_of_the_model(program, statistic, f"{node.target} in training mode")


def _mutation_message(kind: str, name: str, operator: str = "") -> str:
    how = f" ({operator})" if operator else ""
    return (
        f"the model's forward() changes its {kind} {name!r}{how}; to be compiled, it must leave parameters, buffers "
        f"and inputs unchanged (inplace=False, or work on a copy)"
    )
