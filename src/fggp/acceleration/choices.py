"""Which layers are computed sparsely."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fggp.acceleration.measured import Measured, Times, kind_of, measure
from fggp.acceleration.products import Window

MARGIN = 0.9
"""The share of the dense time that a sparse layer may take at most; what gains less may be an error of measurement."""


class Choices:
    """Chooses, for all layers of a model together, which are computed sparsely.

    Args:
        below: the largest density at which any layer is, without measuring; None: what is measured decides.
        measured: what was measured before; what is measured is added to it.
    """

    def __init__(self, below: float | None, measured: Measured) -> None:
        self.below, self.measured = below, measured
        self._densities: dict[str, float] = {}
        self._convolutions: set[str] = set()
        self._sparse: frozenset[str] | None = None  # None: to be chosen

    def set_density(self, name: str, density: float, convolution: bool) -> None:
        """Take note of a layer's share of active weights, and of whether it is a convolution."""
        self._densities[name] = density
        if convolution:
            self._convolutions.add(name)
        self._sparse = None

    def is_sparse(
        self, name: str, x: Tensor, weight: Tensor, window: Window | None, dtype: torch.dtype, trains: bool
    ) -> bool:
        """Whether a layer is computed sparsely now.

        Args:
            name: the layer's.
            x, weight, window, dtype: see `kind_of`.
            trains: whether gradients are wanted. If so, an input of a new kind is measured. If not, what was chosen in
                training holds.
        """
        if self.below is not None:
            return self._densities[name] <= self.below
        if trains:
            kind = kind_of(x, weight, window, dtype)
            if self.measured.kinds.get(name) != kind:
                if kind not in self.measured.times:
                    self.measured.times[kind] = measure(x, weight, window, dtype)
                self.measured.kinds[name] = kind
                self._sparse = None
        if self._sparse is None:
            self._sparse = self._choose()
        return name in self._sparse

    def _choose(self) -> frozenset[str]:
        layers = {
            name: (self.measured.times[kind], self._densities[name])
            for name, kind in self.measured.kinds.items()
            if name in self._densities
        }
        convolutions = {name: layer for name, layer in layers.items() if name in self._convolutions}
        others = {name: layer for name, layer in layers.items() if name not in convolutions}
        return choose(convolutions, images_last=True) | choose(others, images_last=False)


def choose(layers: Mapping[str, tuple[Times, float]], images_last: bool) -> frozenset[str]:
    """Choose which of some layers that follow each other are computed sparsely.

    Activations between them have one layout, dense or images last, and a layer that wants the other one converts its
    input and its output. The layout is chosen with which all layers together take the least time.

    Args:
        layers: times and density by name.
        images_last: whether what lies between the layers keeps that layout, so that it can be chosen.

    Returns:
        The names of the sparse ones.
    """
    least, chosen = math.inf, frozenset[str]()
    # Conversions of dense and of sparse layers, where activations are dense, and where images are last.
    for to_dense, to_sparse in ((0, 1), (1, 0)) if images_last else ((0, 1),):
        total, sparse = 0.0, []
        for name, (times, density) in layers.items():
            densely = times.dense + to_dense * times.conversion
            sparsely = (times.sparse(density) + to_sparse * times.conversion) / MARGIN
            total += min(densely, sparsely)
            if sparsely < densely:
                sparse.append(name)
        if total < least:
            least, chosen = total, frozenset(sparse)
    return chosen
