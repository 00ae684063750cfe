"""Operators that are functions of others: the file's own, and those that ONNX defines so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch

from fggp.ship.onnx.operands import Operand
from fggp.ship.onnx.sizes import text


def bound(nodes: Iterable[onnx.NodeProto], given: Mapping[str, onnx.AttributeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes of a function with the attributes of its call in place of references."""
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.attribute[:]
        for a in node.attribute:
            if a.ref_attr_name:
                if a.ref_attr_name in given:
                    value = copy.attribute.add()
                    value.CopyFrom(given[a.ref_attr_name])
                    value.name = a.name
                continue
            kept = copy.attribute.add()
            kept.CopyFrom(a)
            if a.type == onnx.AttributeProto.GRAPH:
                inner = list(bound(a.g.node, given))
                del kept.g.node[:]
                kept.g.node.extend(inner)
        yield copy


def schema_of(op: str, domain: str, opset: int) -> Any:
    """What ONNX says of an operator; None if it has none of the name."""
    try:
        return onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None


def body_of(proto: onnx.NodeProto, opset: int, inputs: Sequence[Operand | None]) -> onnx.FunctionProto | None:
    """The function that defines an operator by others; None if ONNX has none."""
    schema = schema_of(proto.op_type, proto.domain, opset)
    if schema is None:
        return None
    function: onnx.FunctionProto | None = None
    if schema.has_function:
        function = schema.function_body
    elif schema.has_context_dependent_function:
        types = [_type(x).SerializeToString() for x in inputs]
        function = onnx.FunctionProto.FromString(
            schema.get_context_dependent_function(proto.SerializeToString(), types)
        )
    if function is None:
        return None
    known = {a.name for a in function.attribute_proto}
    for name, attribute in schema.attributes.items():
        if name not in known and attribute.default_value.type:
            function.attribute_proto.add().CopyFrom(attribute.default_value)
    return function


def _type(x: Operand | None) -> onnx.TypeProto:
    if x is None:
        return onnx.TypeProto()
    element = {torch.float32: 1, torch.int64: 7, torch.bool: 9}[x.dtype]
    sizes = [size if isinstance(size, int) else str(text(size)) for size in x.sizes]
    return onnx.helper.make_tensor_type_proto(element, sizes)
