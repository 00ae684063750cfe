"""What a network costs: measured, or predicted before it is trained."""

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

import fggp
from fggp.atomic import atomic_write
from fggp.lab.base import Json
from fggp.lab.base.machine import device_name
from fggp.lab.bench.worker import time_runs
from fggp.lab.budget.wishes import Cost
from fggp.lab.export.export import metadata_of, small_bytes
from fggp.lab.export.trained import Network, weights
from fggp.masks.starts import starting_masks
from fggp.model.find import find_prunable

TURNS = 7
TURN_SECONDS = 0.05


class Meter:
    """Measures networks on this machine.

    Args:
        batch: images at once.
        threads: of the compiled network.

    Attributes:
        remarks: what fggp.compile had to say, each once.
    """

    def __init__(self, batch: int, threads: int) -> None:
        self.batch, self.threads = batch, threads
        self.remarks: list[str] = []

    def cost(self, network: Network) -> Cost:
        """Return the size of a network's small file, and the time of a batch.

        That is the median of the fastest of several turns: what other programs do meanwhile is no cost of the network.
        """
        images = network.images(self.batch)
        with warnings.catch_warnings(record=True) as caught, _threads(self.threads), torch.inference_mode():
            warnings.simplefilter("always")
            compiled = fggp.compile(network.model, images)
            seconds = [time_runs(lambda: compiled(images), TURN_SECONDS)["seconds"] for _ in range(TURNS)]
        texts = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
        self.remarks += [text for text in dict.fromkeys(texts) if text not in self.remarks]
        return Cost(small_bytes(network.model, metadata=metadata_of(network)), 1e3 * min(seconds))


class Prediction:
    """What a network will cost at any sparsity, from random masks with the layer densities to expect.

    These are Erdős–Rényi-Kernel densities. Trained weights are masked by magnitude, all layers together.

    Args:
        network: unpruned.
        weights: the trained ones that it has, as the settings in a record name them; None if it is untrained.
        meter: measures.
        file: keeps what was measured, so that a command that is repeated tries the same sparsities again.
    """

    def __init__(self, network: Network, weights: str | None, meter: Meter, file: Path) -> None:
        self.network, self.trained, self.meter, self.file = network, weights is not None, meter, file
        self._key: Json = {
            "model": network.name,
            "input": dict(network.input),
            "weights": weights,
            "batch": meter.batch,
            "threads": meter.threads,
            "device": device_name(torch.device("cpu")),
            "versions": {"fggp": fggp.__version__, "torch": torch.__version__},
        }

    def cost(self, sparsity: float) -> Cost:
        """Return what the network costs at this share of zeros."""
        known = self._known()
        name = f"{sparsity:g}"
        if name not in known:
            masked = (
                _by_magnitude(self.network.model, sparsity)
                if self.trained
                else _at_random(self.network.model, sparsity)
            )
            known[name] = asdict(self.meter.cost(replace(self.network, model=masked)))
            with atomic_write(self.file) as file:
                file.write(json.dumps({**self._key, "costs": known}, indent=1).encode() + b"\n")
        return Cost(**known[name])

    def known(self) -> dict[float, Cost]:
        """Return all predictions, the lowest sparsity first."""
        return {
            float(name): Cost(**cost) for name, cost in sorted(self._known().items(), key=lambda item: float(item[0]))
        }

    def _known(self) -> dict[str, Json]:
        if not self.file.exists():
            return {}
        content = json.loads(self.file.read_text())
        costs: dict[str, Json] = content.pop("costs")
        return costs if content == self._key else {}


@torch.no_grad()
def _at_random(model: nn.Module, sparsity: float) -> nn.Module:
    """Return a copy with random masks."""
    model = copy.deepcopy(model)
    prunable = find_prunable(model)
    for weight, mask in zip(prunable, starting_masks(prunable, "erk", sparsity, seed=0), strict=True):
        weight.parameter.masked_fill_(~mask, 0)  # a product would leave −0, which small files store
    return model


@torch.no_grad()
def _by_magnitude(model: nn.Module, sparsity: float) -> nn.Module:
    """Return a copy without its smallest weights."""
    model = copy.deepcopy(model)
    prunable = weights(model)
    sizes = torch.cat([weight.abs().flatten() for weight in prunable])
    pruned = round(sparsity * len(sizes))
    if pruned:
        threshold = sizes.kthvalue(pruned).values
        for weight in prunable:
            weight[weight.abs() <= threshold] = 0
    return model


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
