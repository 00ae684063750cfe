"""`fggp.from_onnx`: a network from an ONNX file, which can be run and saved."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from fggp.ship.network.description import Description
from fggp.ship.network.nodes import TYPES
from fggp.ship.network.write import VERSION, write
from fggp.ship.runtime import library
from fggp.ship.runtime.library import RefusedError

if TYPE_CHECKING:
    from onnx import ModelProto

_DTYPES = {name: dtype for dtype, name in TYPES.items()}


def from_onnx(source: str | os.PathLike[str] | ModelProto, *, fixed: Mapping[str, Any] | None = None) -> Imported:
    """Read a network from an ONNX file, without the code of its model.

    Zeros among the file's weights are what makes the network small and fast. Batch norms are folded into the
    convolutions before them, sums and activations are fused, and what depends on constants or shapes alone is computed
    now. Sizes that the file leaves free stay free. Floats are computed in float32, whole numbers in int64.

    Args:
        source: an ONNX file of opset 11 or newer, with or without external data; or an ``onnx.ModelProto``.
        fixed: values of inputs that become constants, and numbers for free sizes, by their names. They decide the
            file's conditions, such as that of the sampling rate in ``{"sr": 16000}``.

    Returns:
        A function of tensors, which also writes the network file.

    Raises:
        UnsupportedError: the network file cannot express operators of the network; the message names them all, and
            the nodes.
        ModuleNotFoundError: the package onnx is not installed.
        OSError: the file cannot be read.
        ValueError: it is no ONNX file, or a name or a value in ``fixed`` does not fit.

    Example:
        >>> net = fggp.from_onnx("model.onnx")
        >>> y = net(x)
        >>> net.save("net.fggp")  # for fggp_runtime and C
    """
    try:
        import onnx  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("fggp.from_onnx needs the package onnx: pip install 'fggp[onnx]'") from error
    from fggp.ship.onnx.describe import describe_onnx
    from fggp.ship.onnx.read import metadata, read

    model = read(source)
    return Imported(describe_onnx(model, fixed or {}), metadata(model))


class Input(NamedTuple):
    """An input of a network.

    Args:
        name: as in the ONNX file.
        dtype: float32, int64 or bool.
        shape: its sizes. A text, such as "N", is a size that is free. Where it occurs again, the size must be the same.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.name}: {kind} [{', '.join(map(str, self.shape))}]"


class Imported:
    """A network that `from_onnx` has read. Print it to see its inputs, outputs and weights.

    It may be called from several threads, which take turns. Gradients do not flow through it.

    Attributes:
        inputs: what goes in.
        outputs: the names of what comes out.
        metadata: the texts of the ONNX file by name; `save` writes them too.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    metadata: dict[str, str]

    def __init__(self, description: Description, metadata: Mapping[str, str]) -> None:
        network = description.network
        self.inputs = tuple(Input(x["name"], _DTYPES[x["type"]], tuple(x["shape"])) for x in network["inputs"])
        self.outputs = tuple(output["name"] for output in network["outputs"])
        self.metadata = dict(metadata)
        self._description = description
        self._lock = threading.Lock()
        self._built: library.Network | None = None

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        values: torch.dtype | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write the network file, which fggp's C library runs without Python and PyTorch.

        Args:
            path: the file. It is replaced in one step.
            values: ``torch.bfloat16`` rounds the values of weights that are stored sparse.
            metadata: texts of your own by name, beside those of the ONNX file.

        Raises:
            ValueError, TypeError: as `fggp.save`.
        """
        texts = {**self.metadata, **(metadata or {})}
        write(path, self._description.network, self._description.tensors, texts, values=values)

    @torch.no_grad()
    def __call__(self, /, *tensors: Any, **named: Any) -> Any:
        """Run the network, with as many threads as PyTorch uses.

        The first call, and the first with inputs of new shapes, takes longer.

        Args:
            tensors: the first inputs, in order: tensors on the CPU, or whatever `torch.as_tensor` takes, such as arrays
                of NumPy. Other floats become float32, and other whole numbers int64.
            named: the other inputs, by name.

        Returns:
            The output, a new tensor; if there are several, a dict of them by name.

        Raises:
            TypeError: an input is missing, unknown, given twice, or of a dtype that is not converted.
            ValueError: an input has a wrong shape or a wrong number, such as an index outside of its table.
            KernelsMissingError: fggp was installed without its kernels.
        """
        given = self._converted(self._by_name(tensors, named))
        with self._lock:
            if self._built is None:
                network = {"version": VERSION, **self._description.network}
                self._built = library.Network.build(network, self._description.tensors, library.load())
            try:
                results = self._built.run(given, torch.get_num_threads())
            except RefusedError as error:
                raise ValueError(str(error)) from None
        return results[0] if len(results) == 1 else dict(zip(self.outputs, results, strict=True))

    def example(self) -> dict[str, Tensor] | None:
        """Random inputs by name, of sizes with which the operations fit each other: ones where whole numbers go in.

        Returns:
            None if no such sizes were found.
        """
        sizes: dict[str, int] = self._description.network.get("example", {})
        free = {size for x in self.inputs for size in x.shape if isinstance(size, str)}
        if not free <= set(sizes):
            return None
        generator = torch.Generator().manual_seed(0)
        found = {}
        for x in self.inputs:
            shape = [sizes[size] if isinstance(size, str) else size for size in x.shape]
            floats = x.dtype == torch.float32
            found[x.name] = torch.randn(shape, generator=generator) if floats else torch.ones(shape, dtype=x.dtype)
        return found

    def _by_name(self, tensors: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        names = [x.name for x in self.inputs]
        if len(tensors) > len(names):
            raise TypeError(f"the network has {len(names)} inputs ({', '.join(names)}), not {len(tensors)}")
        given = dict(zip(names, tensors, strict=False))
        for name, tensor in named.items():
            if name not in names:
                raise TypeError(f"the network has no input {name!r}; its inputs are {', '.join(names)}")
            if name in given:
                raise TypeError(f"the input {name!r} is given twice, by position and by name")
            given[name] = tensor
        for x in self.inputs:
            if x.name not in given:
                raise TypeError(f"the input {x.name!r} is missing, {str(x).partition(': ')[2]}")
        return given

    def _converted(self, given: Mapping[str, Any]) -> dict[bytes, Tensor]:
        """The inputs as the library takes them."""
        converted = {}
        for x in self.inputs:
            tensor = torch.as_tensor(given[x.name])
            if tensor.device.type != "cpu":
                raise ValueError(f"the input {x.name!r} is on {tensor.device}; it must be on the CPU")
            if not torch.can_cast(tensor.dtype, x.dtype):
                was, wanted = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, x.dtype))
                raise TypeError(f"the input {x.name!r} is {was}, and must be {wanted}")
            converted[x.name.encode()] = tensor.to(x.dtype)
        return converted

    def __reduce__(self) -> NoReturn:
        raise TypeError("an imported network cannot be copied or pickled; write a network file (save)")

    def __repr__(self) -> str:
        tensors = self._description.tensors.values()
        total = sum(t.numel() for t in tensors)
        zeros = total - sum(int(t.count_nonzero()) for t in tensors)
        share = f"{total:,} weights, {100 * zeros / max(total, 1):.1f} % of them zero"
        inputs, outputs = ", ".join(map(str, self.inputs)), ", ".join(self.outputs)
        return f"<fggp.Imported ({inputs}) -> {outputs}: {len(self._description.network['nodes'])} operations, {share}>"
