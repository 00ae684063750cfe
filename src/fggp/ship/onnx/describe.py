"""From an ONNX model to the description of a network file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from fggp.ship.graph.simplify import simplify
from fggp.ship.network.describe import describe, memory_key
from fggp.ship.network.description import Description, UnsupportedError
from fggp.ship.onnx.example import example_sizes
from fggp.ship.onnx.patterns import with_known_functions
from fggp.ship.onnx.translate import Translation


def describe_onnx(model: onnx.ModelProto, fixed: Mapping[str, Any]) -> Description:
    """Describe a network.

    Args:
        model: as `fggp.ship.onnx.read.read` returns it.
        fixed: values of inputs and of free sizes, by name.

    Raises:
        UnsupportedError: naming every operator and node that the network file cannot express.
        ValueError: ``fixed`` has an unknown name, or a value that does not fit.
    """
    same: dict[str, int | str] = {}
    while True:
        translated = Translation(model, fixed, same).run()
        b = translated.builder
        if not b.same_sizes:
            break
        # Sizes that the file calls free, and that its operations fix.
        same |= b.same_sizes
    names = {memory_key(tensor): b.names[key] for key, tensor in b.tensors.items() if key in b.names}
    graph = simplify(with_known_functions(translated.graph), copy_constants=False)
    try:
        described = describe(graph, input_names=translated.inputs, names=names)
    except UnsupportedError as error:
        operators = translated.operators
        found = [(operators.get(place, operator), place, why) for operator, place, why in error.found]
        raise UnsupportedError(found) from None
    for output, name in zip(described.network["outputs"], translated.outputs, strict=True):
        output["name"] = name
    example = example_sizes([str(symbol) for symbol in b.free], b.all_sizes, b.equalities)
    if example:
        described.network["example"] = example
    return described
