"""LSTM and GRU."""

from __future__ import annotations

from typing import Any

import torch

from fggp.ship.graph.calls import Call
from fggp.ship.network.aten.common import floats
from fggp.ship.network.description import Inexpressible
from fggp.ship.network.nodes import Handler, Operand, Writer
from fggp.ship.network.sizes import Size

aten = torch.ops.aten


def _recurrent(op: str) -> Handler:
    def write(w: Writer, call: Call, a: dict[str, Any]) -> tuple[Operand, ...]:
        if a["train"] and a["dropout"]:
            raise Inexpressible(f"its dropout is {a['dropout']}, in training mode")
        x = floats(w, a["input"])
        states = [floats(w, state, "hx") for state in (a["hx"] if op == "lstm" else [a["hx"]])]
        layers, directions = a["num_layers"], 2 if a["bidirectional"] else 1
        per_layer = 4 if a["has_biases"] else 2
        weights = [
            floats(w, weight, _name(i % per_layer, *divmod(i // per_layer, directions)))
            for i, weight in enumerate(a["params"])
        ]
        if len(weights) != per_layer * layers * directions:
            raise Inexpressible("it has projections")
        read: list[Operand | None] = [x, *states]
        for start in range(0, len(weights), per_layer):
            read += [*weights[start : start + per_layer], *([None, None] if per_layer == 2 else [])]
        hidden = weights[1].sizes[1]
        assert isinstance(hidden, int)
        steps: tuple[Size, ...] = (*x.sizes[:-1], directions * hidden)
        outputs = [(torch.float32, steps), *((torch.float32, state.sizes) for state in states)]
        return w.nodes_of(
            op,
            read,
            outputs,
            layers=layers,
            bidirectional=bool(a["bidirectional"]),
            batch_first=bool(a["batch_first"]),
        )

    return write


def _name(part: int, layer: int, backward: int) -> str:
    """The name of a weight in PyTorch's module."""
    kind = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[part]
    return f"{kind}_l{layer}{'_reverse' if backward else ''}"


HANDLERS: dict[Any, Handler] = {aten.lstm.input: _recurrent("lstm"), aten.gru.input: _recurrent("gru")}
