"""Attention as one operator (opset 23)."""

from __future__ import annotations

from fggp.ship.onnx.nodes import Handler

HANDLERS: dict[str, Handler] = {}
