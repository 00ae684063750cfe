"""Networks: loading one, and calling it with arrays."""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Mapping
from ctypes import POINTER, byref, c_int32, c_int64, c_void_p, memmove
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fggp_runtime.library import OK, OUT_OF_MEMORY, Array, library

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray  # importing this would take a third as long as NumPy

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "I64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
}
BY_NUMBER = tuple(DTYPES.values())  # in the order of fggp.h's enumeration


class Input(NamedTuple):
    """An input of a network.

    Args:
        name: as in the model's ``forward``.
        dtype: float32, int64 or bool.
        shape: its sizes. A text, such as "N", is a size that is free. Where it occurs again, the size must be the same.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(map(str, self.shape))}]"


class Network:
    """A network that was loaded with `load` or `load_bytes`.

    Several threads may call it. Only one call runs at a time; each uses `threads` threads. To run several at a time,
    load the file once for each, with ``threads=1``.

    Attributes:
        inputs: what goes in.
        outputs: the names of what comes out.
        metadata: the texts that were stored with the network, by name.
        threads: the number of threads that a call uses. It may be changed.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    metadata: Mapping[str, str]
    threads: int

    def __init__(self, handle: c_void_p, threads: int | None) -> None:
        self._handle = handle
        self._lock = threading.Lock()
        weakref.finalize(self, library.fggp_free, handle)
        description = json.loads(library.fggp_describe(handle))
        self.inputs = tuple(
            Input(one["name"], DTYPES[one["type"]], tuple(one["shape"])) for one in description["inputs"]
        )
        self.outputs = tuple(description["outputs"])
        self.metadata = description.get("metadata", {})
        self.threads = _processors() if threads is None else threads

    def __repr__(self) -> str:
        return f"<fggp_runtime.Network ({', '.join(map(str, self.inputs))}) -> {', '.join(self.outputs)}>"

    def __call__(self, /, *arrays: ArrayLike, **named: ArrayLike) -> Any:
        """Run the network.

        The first call with inputs of new shapes takes longer, because the library makes a plan for them.

        Args:
            arrays: the first inputs, in order.
            named: the other inputs, by name. Whatever `numpy.asarray` takes is an input. It is converted to the input's
                dtype as NumPy converts results for its argument ``out``: from float64 to float32, say, or from int32 to
                int64, but not from floats to integers. An input that has the dtype and is contiguous is not copied.

        Returns:
            The output, a new array; if there are several, a dict of them by name.

        Raises:
            TypeError: an input is missing, unknown, given twice, or of a dtype that is not converted.
            ValueError: an input has a wrong shape or a wrong number, such as an index outside of its table.
            MemoryError: the memory does not suffice.
        """
        return self._run(self._converted(self._by_name(arrays, named)))

    def _by_name(self, arrays: tuple[ArrayLike, ...], named: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
        names = [one.name for one in self.inputs]
        if len(arrays) > len(names):
            raise TypeError(f"the network has {len(names)} inputs ({', '.join(names)}), not {len(arrays)}")
        given = dict(zip(names, arrays, strict=False))
        for name, array in named.items():
            if name not in names:
                raise TypeError(f"the network has no input {name!r}; its inputs are {', '.join(names)}")
            if name in given:
                raise TypeError(f"the input {name!r} is given twice, by position and by name")
            given[name] = array
        for one in self.inputs:
            if one.name not in given:
                raise TypeError(f"the input {one.name!r} is missing, {str(one).partition(': ')[2]}")
        return given

    def _converted(self, given: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
        """The inputs as the library takes them."""
        converted = {}
        for one in self.inputs:
            try:
                array = np.asarray(given[one.name])
            except ValueError as error:  # nested lists of different lengths
                raise ValueError(f"the input {one.name!r} is no array: {error}") from error
            if not np.can_cast(array.dtype, one.dtype, "same_kind"):
                raise TypeError(
                    f"the input {one.name!r} is {array.dtype}, and must be {one.dtype}; "
                    f"if that is meant, convert it with .astype({str(one.dtype)!r})"
                )
            converted[one.name] = np.require(array, one.dtype, ["C", "A"])
        return converted

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> Any:
        arrays = (Array * len(inputs))()
        for c_array, (name, array) in zip(arrays, inputs.items(), strict=True):
            c_array.name, c_array.type, c_array.rank = name.encode(), BY_NUMBER.index(array.dtype), array.ndim
            c_array.shape, c_array.data = (c_int64 * array.ndim)(*array.shape), array.ctypes.data
        outputs, count = POINTER(Array)(), c_int32()
        with self._lock:
            _check(
                library.fggp_run(self._handle, arrays, len(arrays), self.threads, byref(outputs), byref(count)),
                self._handle,
            )
            results = [_copied(outputs[i]) for i in range(count.value)]
        return results[0] if len(results) == 1 else dict(zip(self.outputs, results, strict=True))


def _copied(c_array: Array) -> NDArray[Any]:
    array = np.empty(c_array.shape[: c_array.rank], BY_NUMBER[c_array.type])
    memmove(array.ctypes.data, c_array.data, array.nbytes)
    return array


def _check(status: int, handle: c_void_p) -> None:
    """Raise what a status means.

    Raises:
        MemoryError: the memory did not suffice.
        OSError: the library has no network to say more of, because a part of its installation is missing.
        ValueError: the library refused what it was given.
    """
    if status == OK:
        return
    message = library.fggp_error(handle).decode(errors="replace")
    if status == OUT_OF_MEMORY:
        raise MemoryError(message)
    if not handle:
        raise OSError(message)
    raise ValueError(message)


def _processors() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load(path: str | os.PathLike[str], *, threads: int | None = None) -> Network:
    """Load a network from a file.

    Args:
        path: the file, which ``fast.save(path)`` or ``fggp export`` wrote.
        threads: the number of threads of a call; None: all processors that this process may use.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, not a network, or of a newer version; or ``threads`` is less than 1.
        MemoryError: the memory does not suffice.
    """
    _check_threads(threads)
    with open(path, "rb"):  # says why it cannot be read, as Python users expect it
        handle = c_void_p()
        return _loaded(library.fggp_load(os.fsencode(path), byref(handle)), handle, threads)


def load_bytes(data: bytes, *, threads: int | None = None) -> Network:
    """Load a network from the bytes of a file, which are not needed afterwards.

    Args:
        data: the bytes.
        threads: as for `load`.

    Raises:
        ValueError, MemoryError: as for `load`.
    """
    _check_threads(threads)
    handle = c_void_p()
    return _loaded(library.fggp_load_bytes(data, len(data), byref(handle)), handle, threads)


def _check_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}, and must be at least 1")


def _loaded(status: int, handle: c_void_p, threads: int | None) -> Network:
    try:
        _check(status, handle)
    except BaseException:
        library.fggp_free(handle)
        raise
    return Network(handle, threads)
