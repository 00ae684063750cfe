"""Descriptions of networks for tests, each with a function that computes the same in float64 with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fggp.ship.graph.activations import FUNCTIONS
from networks import Network, build

ACTIVATIONS: tuple[tuple[Any, ...] | None, ...] = (
    None,
    ("clamp", 0.0, "inf"),
    ("clamp", -0.5, 0.5),
    ("leaky_relu", 0.1),
    ("sigmoid",),
    ("hard_swish",),
    ("gelu",),
)


def activated(x: Tensor, activation: Sequence[Any] | None) -> Tensor:
    """Apply an activation as a description names it."""
    if activation is None:
        return x
    name, *numbers = activation
    return FUNCTIONS[name](x, *(float(n) for n in numbers))


class Described:
    """A network that is built operation by operation. Values are their numbers.

    Args:
        shapes: of the inputs for any batch, without dimension 0, which is the batch.
        seed: of the weights.
        plan: the description's entry "plan".
    """

    def __init__(self, *shapes: Sequence[int], seed: int = 0, plan: Mapping[str, str] | None = None) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.plan = dict(plan or {})
        self.input_shapes = [tuple(shape) for shape in shapes]
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[dict[str, Any]] = []
        self.shapes: dict[int, tuple[int, ...]] = dict(enumerate(self.input_shapes))  # without the batch
        self._compute: list[Callable[[list[Tensor]], Tensor]] = []

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)

    def tensor(self, *shape: int, density: float = 1.0) -> str:
        """A random tensor of the network, of the given share of non-zero numbers. Returns its name."""
        name = f"t{len(self.tensors)}"
        kept = torch.rand(shape, generator=self._generator) < density
        self.tensors[name] = self.randn(*shape) * kept
        return name

    def add(self, op: str, read: Sequence[int | str | None], compute: Callable[..., Tensor], **attributes: Any) -> int:
        """Add an operation. ``compute`` takes what it reads, in float64; None: absent."""
        kept = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append({"op": op, "name": f"node{len(self.nodes)}", "in": list(read), **kept})

        def run(values: list[Tensor]) -> Tensor:
            given = [None if i is None else self.tensors[i].double() if isinstance(i, str) else values[i] for i in read]
            return compute(*given)

        self._compute.append(run)
        number = len(self.input_shapes) + len(self.nodes) - 1
        examples = [torch.zeros(1, *shape, dtype=torch.float64) for shape in self.input_shapes]
        self.shapes[number] = tuple(self._values(examples)[number].shape[1:])
        return number

    def conv(
        self,
        x: int,
        outputs: int,
        kernel: Sequence[int] = (1, 1),
        *,
        density: float = 0.2,
        residual: int | None = None,
        bias: bool = True,
        activation: Sequence[Any] | None = None,
        groups: int = 1,
        **settings: Sequence[int],
    ) -> int:
        weight = self.tensor(outputs, self.shapes[x][0] // groups, *kernel, density=density)
        ones, zeros = [1] * len(kernel), [0] * len(kernel)
        given = {"stride": ones, "padding": zeros, "dilation": ones, **settings}
        function = (F.conv1d, F.conv2d)[len(kernel) - 1]

        def compute(x: Tensor, w: Tensor, b: Tensor | None = None, r: Tensor | None = None) -> Tensor:
            y = function(x, w, b, groups=groups, **{k: tuple(v) for k, v in given.items()})
            return activated(y if r is None else y + r, activation)

        read = [x, weight, self.tensor(outputs) if bias else None, residual]
        return self.add("conv", read, compute, groups=groups, activation=activation, **given)

    def linear(
        self,
        x: int,
        outputs: int,
        *,
        density: float = 0.2,
        residual: int | None = None,
        activation: Sequence[Any] | None = None,
    ) -> int:
        def compute(x: Tensor, w: Tensor, b: Tensor, r: Tensor | None = None) -> Tensor:
            y = F.linear(x, w, b)
            return activated(y if r is None else y + r, activation)

        read = [x, self.tensor(outputs, self.shapes[x][-1], density=density), self.tensor(outputs), residual]
        return self.add("linear", read, compute, activation=activation)

    def sum(self, a: int, b: int, activation: Sequence[Any] | None = None) -> int:
        return self.add("add", [a, b], lambda a, b: activated(a + b, activation), activation=activation)

    def activate(self, x: int, activation: Sequence[Any]) -> int:
        return self.add("activate", [x], lambda x: activated(x, activation), activation=activation)

    def affine(self, x: int, activation: Sequence[Any] | None = None) -> int:
        def compute(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            one = (-1, *[1] * (x.dim() - 2))
            return activated(x * scale.view(one) + shift.view(one), activation)

        channels = self.shapes[x][0]
        return self.add("affine", [x, self.tensor(channels), self.tensor(channels)], compute, activation=activation)

    def layer_norm(self, x: int) -> int:
        def compute(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

        size = self.shapes[x][-1]
        return self.add("layer_norm", [x, self.tensor(size), self.tensor(size)], compute, dims=1, epsilon=1e-5)

    def slice(self, x: int, dim: int, start: int, stop: int, step: int = 1) -> int:
        def compute(x: Tensor) -> Tensor:
            return x[(slice(None),) * dim + (slice(start, stop, step),)]

        return self.add("slice", [x], compute, dim=dim, start=start, stop=stop, step=step)

    def scale(self, x: int, dim: int, function: str = "mul") -> int:
        """A sum or product with one number for each index of a dimension."""
        rank = len(self.shapes[x]) + 1
        constant = self.tensor(*(self.shapes[x][dim - 1] if d == dim else 1 for d in range(1, rank)))
        return self.add("binary", [x, constant], getattr(torch, function), function=function)

    def mean(self, x: int, *dims: int, keep: bool = False) -> int:
        return self.add("reduce", [x], lambda x: x.mean(dims, keep), function="mean", dims=dims, keep=keep)

    def gate(self, x: int, gate: int) -> int:
        return self.add("gate", [x, gate], torch.mul)

    def concat(self, *read: int, dim: int = 1) -> int:
        return self.add("concat", read, lambda *x: torch.cat(x, dim), dim=dim)

    def channels(self, index: Sequence[int], *read: int) -> int:
        return self.add("channels", read, lambda *x: torch.cat(x, 1)[:, list(index)], index=list(index))

    def flatten(self, x: int) -> int:
        return self.add("flatten", [x], lambda x: x.flatten(1))

    def permute(self, x: int, *dims: int) -> int:
        return self.add("permute", [x], lambda x: x.permute(dims), dims=dims)

    def max_pool(self, x: int, kernel: Sequence[int], **settings: Any) -> int:
        def compute(x: Tensor) -> Tensor:
            names = {"ceil_mode" if k == "ceil" else k: v for k, v in settings.items()}
            return F.max_pool2d(x, tuple(kernel), **names)

        return self.add("max_pool", [x], compute, kernel=kernel, **{"dilation": (1, 1), **settings})

    def average_pool(self, x: int, kernel: Sequence[int], *, stride: Any, padding: Any, **settings: Any) -> int:
        names = {"ceil": "ceil_mode", "count_padding": "count_include_pad", "divisor": "divisor_override"}

        def compute(x: Tensor) -> Tensor:
            given = {names[k]: v for k, v in settings.items()}
            return F.avg_pool2d(x, tuple(kernel), tuple(stride), tuple(padding), **given)

        return self.add("average_pool", [x], compute, kernel=kernel, stride=stride, padding=padding, **settings)

    def adaptive_average_pool(self, x: int, *size: int) -> int:
        return self.add("adaptive_average_pool", [x], lambda x: F.adaptive_avg_pool2d(x, size), size=size)

    def description(self, *outputs: int) -> dict[str, Any]:
        """The network that returns these values, which are named by their numbers."""
        return {
            "version": 1,
            "inputs": [
                {"name": f"x{i}", "type": "F32", "shape": ["N", *shape]} for i, shape in enumerate(self.input_shapes)
            ],
            "nodes": self.nodes,
            "outputs": [{"name": f"y{i}", "value": value} for i, value in enumerate(outputs)],
            "plan": self.plan,
        }

    def build(self, *outputs: int) -> Network:
        return build(self.description(*outputs), self.tensors)

    def inputs(self, batch: int) -> dict[str, Tensor]:
        """Random inputs."""
        return {f"x{i}": self.randn(batch, *shape) for i, shape in enumerate(self.input_shapes)}

    def _values(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        values = list(inputs)
        for compute in self._compute:
            values.append(compute(values))
        return values

    def expected(self, inputs: Mapping[str, Tensor], *outputs: int) -> list[Tensor]:
        """These values in float64."""
        values = self._values([x.double() for x in inputs.values()])
        return [values[i] for i in outputs]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to rounding."""
    assert actual.shape == expected.shape
    assert (actual.double() - expected).norm() <= tolerance * expected.norm() + 1e-12
