"""`fggp.quantization_aware`: training with the rounding of int8."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from fggp import registry
from fggp.ship.graph.capture import unwrapped
from fggp.ship.graph.operations import Product
from fggp.ship.graph.quantized import Quantization
from fggp.ship.graph.simplify import simplify
from fggp.ship.network.describe import captured
from fggp.ship.quantize.layers import ROUNDED
from fggp.ship.quantize.network import Example, Plan, Quantized, excluded_places, planned, refuse_infinite
from fggp.ship.quantize.rewrite import Choice, joined, rewritten


def quantization_aware(
    model: nn.Module, batches: Iterable[Any], *, calibration: str = "mse", exclude: Sequence[str] = ()
) -> QuantizationAware:
    """Let a network train with the rounding of int8, for where `fggp.quantize` alone costs too much accuracy.

    From now on its convolutions and linear layers round their inputs and weights as int8 does, in training and in
    evaluation, on any device. Gradients pass through the rounding as if it were not there, and are 0 for inputs outside
    their range. Parameters, state dict, optimizer and `Pruner` stay as they are: pruned weights are zero, which
    rounding keeps. Batch norms go on learning. What layers read has the ranges of the batches until training ends.

    Args:
        model: on the CPU, after all training without rounding; it may be moved afterwards. It is changed.
        batches: as for `fggp.quantize`, and so are `calibration` and `exclude`.

    Returns:
        What takes the rounding away again, and makes the network one of whole numbers.

    Raises:
        ValueError: no layer can be trained so, or as `fggp.quantize`.
        TypeError, CaptureError, MutationError: as `fggp.quantize`.

    Warns:
        UserWarning: int8 will round a layer that is not rounded in training, because it is used more than once, or
            is of a class derived from PyTorch's.

    Example:
        >>> aware = fggp.quantization_aware(model, [x for x, _ in itertools.islice(loader, 8)])
        >>> train(model, epochs=2)
        >>> fast = fggp.compile(aware.quantize(), torch.randn(1, 3, 32, 32))
    """
    plan = planned(model, batches, calibration, exclude)
    return QuantizationAware(model, plan, exclude)


class QuantizationAware:
    """The rounding in a model that `quantization_aware` has prepared. Print it to see which layers round.

    Attributes:
        layers: the names of the layers that round.
    """

    def __init__(self, model: nn.Module, plan: Plan, exclude: Sequence[str]) -> None:
        self._model = model
        self._example: Example = plan.example
        self._exclude = tuple(exclude)
        self._ranges = {v.name: q for v, q in plan.of.items()}
        self._widths = {v.name: width for v, width in plan.widths.items()}
        self.layers: tuple[str, ...] = ()
        self._round(self._layers_that_can(plan))

    def quantize(self) -> Quantized:
        """Return the network of whole numbers, with the ranges it was trained with. The model stays as it is.

        Raises:
            ValueError: the model is not on the CPU, or a weight is not finite.

        Warns:
            UserWarning: as `fggp.quantize`.
        """
        for message in registry.complaints(self._model):
            warnings.warn(f"fggp.quantize: {message}", UserWarning, stacklevel=2)
        plan = self._planned(self._ranges, self._widths)
        refuse_infinite(plan.graph, plan.choice)
        network = rewritten(plan.graph, plan.choice, plan.of)
        return Quantized(network, type(self._model).__name__, registry.certificate(self._model))

    def remove(self) -> None:
        """Take the rounding out of the model. Weights stay as they are, unrounded."""
        for name in self.layers:
            layer = unwrapped(self._model).get_submodule(name)
            layer.__class__ = _base(layer)
            del layer.fggp_input
        self.layers = ()

    def state_dict(self) -> dict[str, Any]:
        """The ranges, for `load_state_dict` of the same model's in another process. The model's state has none."""
        ranges = {name: (q.scale, q.zero) for name, q in self._ranges.items()}
        return {"ranges": ranges, "widths": dict(self._widths)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Round with the ranges of a state instead.

        Raises:
            ValueError: it is of another model.
        """
        ranges = {name: Quantization(*pair) for name, pair in state["ranges"].items()}
        widths = dict(state["widths"])
        plan = self._planned(ranges, widths)
        layers = self._layers_that_can(plan)
        self.remove()
        self._ranges, self._widths = ranges, widths
        self._round(layers)

    def __repr__(self) -> str:
        return (
            f"{type(self._model).__name__} rounds as int8 does in {len(self.layers)} layers: {', '.join(self.layers)}"
        )

    def _layers_that_can(self, plan: Plan) -> dict[str, tuple[nn.Module, Quantization]]:
        """The layers that can round in training and what they read, by name. Nothing is changed: warnings may raise."""
        products = [op for op in plan.graph.ops if op in plan.choice.whole and isinstance(op, Product)]
        modules = dict(unwrapped(self._model).named_modules(remove_duplicate=False))
        uses = Counter(modules.get(op.module) for op in products)
        layers: dict[str, tuple[nn.Module, Quantization]] = {}
        others = []
        for op in products:
            layer = modules.get(op.module)
            if layer is not None and (type(layer) in ROUNDED or op.module in self.layers) and uses[layer] == 1:
                layers[op.module] = layer, plan.of[op.inputs[0]]
            else:
                others.append(op.place)
        if not layers:
            raise ValueError("no nn.Conv2d or nn.Linear of the model, used once, would run in int8")
        if others:
            warnings.warn(
                f"fggp.quantization_aware: {', '.join(dict.fromkeys(others))} will be rounded in int8, but not in "
                f"training, because a layer is used more than once or is no plain nn.Conv2d or nn.Linear; `exclude` "
                f"keeps it in float32",
                UserWarning,
                stacklevel=4,
            )
        return layers

    def _round(self, layers: Mapping[str, tuple[nn.Module, Quantization]]) -> None:
        """Make layers round."""
        for layer, read in layers.values():
            layer.__class__ = ROUNDED[type(layer)]
            layer.fggp_input = read  # type: ignore[assignment]
        self.layers = tuple(layers)

    def _planned(self, ranges: Mapping[str, Quantization], known: Mapping[str, float]) -> Plan:
        """What the model would be in int8 with some ranges, and lengths of the ranges of `joined` values."""
        with self._unrounded():
            graph = simplify(captured(self._model, *self._example))
        try:
            widths = {v: known[v.name] for v in joined(graph)}
            choice = Choice(graph, excluded_places(graph, self._exclude), widths)
            of = {v: ranges[v.name] for v in choice.groups}
        except KeyError as error:
            raise ValueError(f"the ranges are of another model: they have none for {error}") from None
        return Plan(self._example, graph, choice, of, widths)

    @contextmanager
    def _unrounded(self) -> Iterator[None]:
        """The model without the rounding."""
        layers = [unwrapped(self._model).get_submodule(name) for name in self.layers]
        classes = [layer.__class__ for layer in layers]
        try:
            for layer in layers:
                layer.__class__ = _base(layer)
            yield
        finally:
            for layer, own in zip(layers, classes, strict=True):
                layer.__class__ = own


def _base(layer: nn.Module) -> type[nn.Module]:
    """The class that a layer had before it rounded."""
    return next(base for base, rounding in ROUNDED.items() if type(layer) is rounding)
