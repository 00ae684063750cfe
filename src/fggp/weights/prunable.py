"""One prunable weight: its name, its parameter, and the modules that hold it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fggp.weights.dtensor import is_gathered_for_forward


@dataclass
class Prunable:
    """A weight to be pruned.

    Args:
        name: its name in the plain model, without prefixes of wrappers; the first of its names if it is tied.
        parameter: the weight itself.
        owners: (module, attribute, full name) of every place that holds it; several if it is tied.
    """

    name: str
    parameter: nn.Parameter
    owners: list[tuple[nn.Module, str, str]]

    def current(self) -> nn.Parameter | None:
        """The parameter that the model holds in this one's place now.

        Returns:
            None if a place is empty, or if places that were tied hold different parameters.
        """
        module, attribute, _ = self.owners[0]
        first = module._parameters.get(attribute)
        if any(module._parameters.get(attribute) is not first for module, attribute, _ in self.owners[1:]):
            return None
        if is_gathered_for_forward(self.parameter, first):
            return self.parameter
        return first
