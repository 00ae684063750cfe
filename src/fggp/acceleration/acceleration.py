"""Makes a model's layers skip their pruned weights in training, and undoes it."""

from __future__ import annotations

from torch import nn

from fggp import native
from fggp.acceleration.choices import Choices
from fggp.acceleration.measured import Measured
from fggp.acceleration.modules import BASES, FOLLOWERS, PRODUCTS, Layer, window_of
from fggp.masks.masks import Masks
from fggp.text import listing
from fggp.weights.dtensor import is_dtensor

MOST_WEIGHTS = 2**31 - 1
"""Of a layer, which the kernels number in 32 bits."""


class Acceleration:
    """What `fggp.Pruner.accelerate` did to a model.

    Args:
        model: whose convolutions and linear layers are accelerated.
        masks: of its prunable weights.
        below: the largest density at which a layer is computed sparsely; None: what is measured decides.
        measured: what was measured before; what is measured is added to it.

    Attributes:
        skipped: why the other prunable weights are not accelerated, by name.

    Raises:
        ValueError: no weight can be accelerated. The model is then unchanged.
        KernelsMissingError: fggp was installed without its C++ kernels.
    """

    def __init__(self, model: nn.Module, masks: Masks, below: float | None, measured: Measured) -> None:
        native.load()
        choices = Choices(below, measured)
        self.skipped: dict[str, str] = {}
        self._layers: dict[str, tuple[nn.Module, Layer]] = {}
        for weight in masks.weights:
            for module, attribute, name in weight.owners:
                if is_dtensor(weight.parameter):
                    raise ValueError(f"{name} is sharded: accelerate() needs whole weights")
                if type(module) not in PRODUCTS or attribute != "weight":
                    self.skipped[name] = type(module).__name__
                    continue
                if weight.parameter.numel() > MOST_WEIGHTS:
                    self.skipped[name] = f"{type(module).__name__} with more than {MOST_WEIGHTS:,} weights"
                    continue
                try:
                    self._layers[name] = module, Layer(name, window_of(module), choices)
                except ValueError as error:
                    self.skipped[name] = f"{type(module).__name__} with {error}"
        if not self._layers:
            why = listing([f"{name} ({reason})" for name, reason in self.skipped.items()])
            raise ValueError(f"no weight can be accelerated, only those of Conv2d and Linear modules; there are {why}")
        self._weights = {name: weight.name for weight in masks.weights for _, _, name in weight.owners}
        self._followers = [module for module in model.modules() if type(module) in FOLLOWERS]
        self.set_masks(masks)
        for module, layer in self._layers.values():
            module.fggp_layer = layer  # type: ignore[assignment]
            module.__class__ = PRODUCTS[type(module)]
        for module in self._followers:
            module.__class__ = FOLLOWERS[type(module)]

    def set_masks(self, masks: Masks) -> None:
        """Use other masks from the next forward pass on."""
        by_name = masks.by_name
        counts = {w.name: n / w.parameter.numel() for w, n in zip(masks.weights, masks.counts, strict=True)}
        for name, (_, layer) in self._layers.items():
            weight = self._weights[name]
            layer.set_mask(by_name[weight], counts[weight])

    def remove(self) -> None:
        """Give the modules their own classes back."""
        for module, _ in self._layers.values():
            if type(module) in BASES:
                del module.fggp_layer
                module.__class__ = BASES[type(module)]
        for module in self._followers:
            module.__class__ = BASES.get(type(module), type(module))
        self._layers, self._followers = {}, []

    def __repr__(self) -> str:
        sparse = sum(layer.computes_sparsely for _, layer in self._layers.values())
        text = f"Acceleration: {sparse} of {len(self._layers)} layers skip their pruned weights"
        return f"{text}; not {listing([f'{n} ({why})' for n, why in self.skipped.items()])}" if self.skipped else text
