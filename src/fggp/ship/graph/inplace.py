"""Which operators that write into their argument can be taken for ones that do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from fggp.ship.graph.operations import arguments

aten = torch.ops.aten

# Between floating-point tensors of one dtype, these return that dtype without the underscore too. (`eq_` would not.)
# fmt: off
_PLAIN = frozenset([
    "relu_", "relu6_", "hardtanh_", "hardswish_", "hardsigmoid_", "silu_", "mish_", "sigmoid_", "tanh_", "gelu_",
    "leaky_relu_", "elu_", "selu_", "celu_", "threshold_", "add_", "sub_", "mul_", "div_", "neg_", "abs_", "exp_",
    "log_", "sqrt_", "rsqrt_", "pow_", "clamp_", "clamp_min_", "clamp_max_", "addcmul_", "addcdiv_", "lerp_",
])
# fmt: on
# These write nothing in evaluation.
_IDLE = frozenset(["dropout_", "feature_dropout_", "alpha_dropout_", "feature_alpha_dropout_", "detach_"])


class MutationError(ValueError):
    """A network changes its inputs, parameters or buffers when it is run in evaluation."""


def functional_targets(program: ExportedProgram) -> dict[fx.Node, OpOverload] | None:
    """For every node that writes in place, the operator that computes the same and writes nothing.

    Returns:
        None if that would change the result, as far as one can tell.

    Raises:
        MutationError: the network changes an input, a parameter or a buffer.
    """
    nodes = list(program.graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    sharing = _sharing(nodes)
    targets: dict[fx.Node, OpOverload] = {}
    for node in nodes:
        if any(_mutates(inner) for inner in _inner_nodes(node)):
            return None
        _refuse_running_statistics(program, node)
        if not _mutates(node):
            continue
        # An out= variant writes elsewhere than into its first argument; the operator without underscore is missing
        # for some; neither is in the lists of those that are plain or idle.
        name = node.target._schema.name.removeprefix("aten::")
        plain = getattr(getattr(aten, name.rstrip("_"), None), node.target._overloadname, None)
        written = node.args[0]
        idle = name in _IDLE and not _trains(node)
        if not idle:
            places = [n for n in sharing[written] if order[n] < order[node]]
            for place in places:
                _refuse_outside(program, place, f"{node.target}")
            if name not in _PLAIN or not _one_float_dtype(node):
                return None
            if any(n.op == "placeholder" for n in places):
                return None
            if any(order[user] > order[node] for place in places for user in place.users):
                return None
        if plain is None:
            return None
        targets[node] = plain
    return targets


def refuse_changed(program: ExportedProgram) -> None:
    """Raise `MutationError` if a network that was made free of writing still changes an input or a buffer."""
    signature = program.graph_signature
    for name in signature.buffers_to_mutate.values():
        raise MutationError(_changes("buffer", name))
    for name in signature.user_inputs_to_mutate.values():
        raise MutationError(_changes("input", name))
    # A signature that lists parameters too came with a later PyTorch than the oldest supported.
    for name in getattr(signature, "parameters_to_mutate", {}).values():
        raise MutationError(_changes("parameter", name))


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _inner_nodes(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes of a graph that this node hands to a higher-order operator."""
    if node.op == "get_attr":
        held: Any = node.graph.owning_module
        for part in str(node.target).split("."):
            held = getattr(held, part)
        if isinstance(held, fx.GraphModule):
            for module in held.modules():
                if isinstance(module, fx.GraphModule):
                    yield from module.graph.nodes


def _sharing(nodes: list[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For each node, all nodes whose tensors may share memory with its own.

    Tracing gave the stand-ins of tensors storages, which views share as the real ones do; operators that say that
    they return a view are believed too.
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
        elif node.op == "call_function":  # of getitem and of higher-order operators nothing is known
            relatives += node.all_input_nodes
        for relative in relatives:
            if groups[relative] is not groups[node]:
                groups[node].extend(groups[relative])
                for n in groups[node]:
                    groups[n] = groups[node]
    return groups


def _trains(node: fx.Node) -> bool:
    """Whether a dropout is one of training."""
    return bool(arguments(node.target, node.args, node.kwargs).get("train"))


def _one_float_dtype(node: fx.Node) -> bool:
    dtypes = {n.meta["val"].dtype for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)}
    return len(dtypes) == 1 and all(dtype.is_floating_point for dtype in dtypes)


def _refuse_outside(program: ExportedProgram, node: fx.Node, operator: str) -> None:
    signature = program.graph_signature
    for kind, names in (
        ("parameter", signature.inputs_to_parameters),
        ("buffer", signature.inputs_to_buffers),
        ("input", {name: name for name in signature.user_inputs if isinstance(name, str)}),
    ):
        if node.name in names:
            raise MutationError(_changes(kind, names[node.name], operator))


def _refuse_running_statistics(program: ExportedProgram, node: fx.Node) -> None:
    """Batch and instance norm update their running statistics without saying so in their signature."""
    if node.target not in (aten.batch_norm.default, aten.instance_norm.default):
        return
    given = arguments(node.target, node.args, node.kwargs)
    if given.get("training") or given.get("use_input_stats"):
        for statistic in (given["running_mean"], given["running_var"]):
            if isinstance(statistic, fx.Node):
                _refuse_outside(program, statistic, f"{node.target} in training mode")


def _changes(kind: str, name: str, operator: str = "") -> str:
    how = f" ({operator})" if operator else ""
    return (
        f"the model's forward() changes its {kind} {name!r}{how}; a network that is to be compiled must leave its "
        f"parameters, buffers and inputs as they are (inplace=False, or work on a copy)"
    )
