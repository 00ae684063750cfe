"""LSTM and GRU."""

from __future__ import annotations

import numpy as np
import torch

from fggp.ship.network.description import Inexpressible
from fggp.ship.onnx.builder import Builder
from fggp.ship.onnx.nodes import Handler, Node, Result, by_name
from fggp.ship.onnx.operands import Constant, Operand, Running, constant_array

aten = torch.ops.aten

# The gates in PyTorch's order, as their places in ONNX's: i, o, f, c and z, r, h.
_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
_FUNCTIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}


def _gates(array: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Rows of gates in PyTorch's order."""
    parts = np.split(array, len(order))
    return np.ascontiguousarray(np.concatenate([parts[i] for i in order]))


def _refuse(n: Node, kind: str, directions: int) -> None:
    """Raise Inexpressible for what PyTorch's layers do not have."""
    functions = [f.decode().lower() if isinstance(f, bytes) else f.lower() for f in n.get("activations", [])]
    for found, what in (
        (n.get("clip"), "a clip"),
        (n.get("layout"), "layout=1; expressed is 0, with the batch in the middle"),
        (n.get("input_forget"), "coupled input and forget gates"),
        (n.optional(7) if kind == "LSTM" else None, "peepholes"),
        (functions and functions != _FUNCTIONS[kind] * directions, f"the activations {functions}"),
        (kind == "GRU" and not n.get("linear_before_reset", 0), "linear_before_reset=0; expressed is 1, PyTorch's"),
    ):
        if found:
            raise Inexpressible(f"it has {what}")


def _recurrent(kind: str) -> Handler:
    def write(b: Builder, n: Node) -> Result:
        direction = n.get("direction", "forward")
        directions = 2 if direction == "bidirectional" else 1
        _refuse(n, kind, directions)
        x = b.running(n.floats(0))
        length, batch, features = x.sizes
        lengths = n.optional(4)
        if lengths is not None and not (isinstance(lengths, Constant) and (lengths.array == length).all()):
            raise Inexpressible("its sequences have lengths of their own (sequence_lens)")
        weights, hidden = _weights(n, kind, directions)
        b.same(features, weights[0].sizes[1])
        states = []
        for place in (5, 6)[: 2 if kind == "LSTM" else 1]:
            state = n.optional(place)
            if state is None:
                states.append(b.filled((directions, batch, hidden), 0.0, torch.float32).value)
            else:
                for size, wanted in zip(state.sizes, (directions, batch, hidden), strict=True):
                    b.same(size, wanted)
                states.append(b.argument(state))
        if direction == "reverse":
            x = _reversed(b, x)
        target = aten.lstm.input if kind == "LSTM" else aten.gru.input
        given = states if kind == "LSTM" else states[0]
        tensors = [b.argument(weight) for weight in weights]
        settings = len(weights) == 4 * directions, 1, 0.0, False, directions == 2, False
        end = (directions, batch, hidden), torch.float32
        results = b.call_of_several(
            target,
            x.value,
            given,
            tensors,
            *settings,
            results=[((length, batch, directions * hidden), torch.float32), *[end] * len(states)],
        )
        steps, *ends = results
        steps = _reversed(b, steps) if direction == "reverse" else steps
        steps = b.reshape(steps, (length, batch, directions, hidden))
        return b.permute(steps, [0, 2, 1, 3]), *ends  # [S, D, N, H]

    return write


def _weights(n: Node, kind: str, directions: int) -> tuple[list[Operand], int]:
    """weight_ih, weight_hh, bias_ih and bias_hh for each direction, and the hidden size."""
    inner, outer = (constant_array(n.input(i), name) for i, name in ((1, "W"), (2, "R")))
    bias = None if n.optional(3) is None else constant_array(n.optional(3), "B")
    order = _ORDER[kind]
    weights: list[Operand] = []
    for i in range(directions):
        weights += [Constant(_gates(inner[i], order)), Constant(_gates(outer[i], order))]
        if bias is not None:
            weights += [Constant(_gates(half, order)) for half in np.split(bias[i], 2)]
    return weights, int(outer.shape[2])


def _reversed(b: Builder, x: Running) -> Running:
    return b.call(aten.flip.default, x.value, [0], sizes=x.sizes)


HANDLERS = by_name({"LSTM": _recurrent("LSTM"), "GRU": _recurrent("GRU")})
