"""How a convolution is divided into tiles and chunks for registers and caches: candidates, and the fastest by trial."""

import time
from collections.abc import Callable, Iterator, Sequence
from ctypes import Array
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from fggp.ship.runtime.instructions import Buffer, Convolve
from fggp.ship.runtime.kernels import CActivation, CConv, CTensor, Kernels, Program

MAX_ROWS, MAX_COLUMNS = 4, 8
# Bytes of input under one tile that all output channels read before the next chunk of input channels: what fits the
# first-level cache, or the second-level cache; 0: the whole input.
WORKING_SET_BYTES = (32 << 10, 128 << 10, 0)
MIN_CHUNK = 4
TRIALS = 6
# A tiling that takes this multiple of the best one's time is not tried again.
RULED_OUT_RATIO = 1.3


@dataclass(frozen=True)
class Tiling:
    """The tile shape and chunk sizes of a chain of convolutions.

    Args:
        rows: the number of rows of a tile, whose sums stay in registers.
        columns: the number of vectors in each row.
        chunks: for each convolution, the number of input channels in a chunk: all output channels read one chunk before
            the next.
    """

    rows: int
    columns: int
    chunks: tuple[int, ...]


def _even_part(width: int, most: int) -> int:
    """The size of the parts if a width is divided as evenly as possible into the fewest parts of at most ``most``."""
    parts = -(-width // most)
    return -(-width // parts)


def candidate_tilings(chain: Sequence[Convolve], kernels: Kernels) -> list[Tiling]:
    """Tilings worth trying, the most promising first."""
    out = chain[0].out.layout
    if out.lanes == 1:
        # A single image's input is small, and each weight is read once.
        vectors = -(-((out.height - 1) * out.row + out.width) // kernels.lanes)
        columns = _even_part(vectors, min(MAX_COLUMNS, kernels.registers))
        rows = max(1, min(2, -(-vectors // columns), kernels.registers // columns))
        return [Tiling(rows, columns, (chain[0].weight.shape[1],))]
    return list(dict.fromkeys(_batch_tilings(chain, kernels)))


def _batch_tilings(chain: Sequence[Convolve], kernels: Kernels) -> Iterator[Tiling]:
    out = chain[0].out.layout
    flat = all(c.stride == 1 and c.out.layout.row == c.input.layout.row == out.width for c in chain)
    for most in (4, 8):
        columns = _even_part(out.width * out.height if flat else out.width, most)
        for registers in (kernels.registers, kernels.registers // 2):
            rows = max(1, min(MAX_ROWS, registers // columns))
            for working_set in WORKING_SET_BYTES:
                yield Tiling(rows, columns, tuple(_channels_per_chunk(c, rows, columns, working_set) for c in chain))


def _channels_per_chunk(convolve: Convolve, rows: int, columns: int, working_set: int) -> int:
    """The number of input channels whose pixels under one tile take about ``working_set`` bytes; 0: all channels."""
    _, inputs, height, width = convolve.weight.shape
    down, across = (rows - 1) * convolve.stride + height, (columns - 1) * convolve.stride + width
    chunk = working_set // (down * across * convolve.input.layout.lanes * 4) if working_set else inputs
    return _even_part(inputs, min(max(chunk, MIN_CHUNK), inputs))


Locate = Callable[[Buffer | None], CTensor]


def c_chain(chain: Sequence[Convolve], tiling: Tiling, locate: Locate) -> tuple[Array[CConv], tuple[Tensor, ...]]:
    """The C structures of a chain of convolutions, and the owners of the memory they point to."""
    convs = (CConv * len(chain))()
    keep: list[Tensor] = []
    for i, (c, chunk) in enumerate(zip(chain, tiling.chunks, strict=True)):
        entries, starts = c.weight.entries(c.input.layout, c.padding, c.dilation, chunk)
        tensors = locate(c.input), locate(c.out), locate(c.residual)
        addresses = entries.data_ptr(), starts.data_ptr(), c.weight.bias.data_ptr()
        chunks = -(-c.weight.shape[1] // chunk)
        activation = CActivation.of(c.activation)
        convs[i] = CConv(*tensors, *addresses, activation, chunks, c.stride, tiling.rows, tiling.columns)
        keep += entries, starts, c.weight.bias
    return convs, tuple(keep)


class Tuner:
    """Finds the fastest tiling by trial, once for each shape of convolution.

    Args:
        kernels: the kernels that run it.
        threads: the number of threads.
    """

    def __init__(self, kernels: Kernels, threads: int) -> None:
        self._kernels, self._threads = kernels, threads
        self._best: dict[tuple[object, ...], tuple[float, Tiling]] = {}

    def choose(self, chain: Sequence[Convolve], locate: Locate) -> tuple[float, Tiling]:
        """The fastest tiling and its time.

        Args:
            chain: the convolutions.
            locate: returns the C structure of a buffer. The trials overwrite the buffers.

        Returns:
            Seconds, 0 if there is only one candidate; the tiling.
        """
        tilings = candidate_tilings(chain, self._kernels)
        if len(tilings) == 1:
            return 0, tilings[0]
        key = tuple(x for c in chain for x in _timing_key(c))
        if key not in self._best:
            programs = [self._program(chain, tiling, locate) for tiling in tilings]
            times = [float("inf")] * len(tilings)
            for trial in range(TRIALS):
                # In turns, so that a short disturbance slows one trial of each tiling and not all trials of one.
                for i, program in enumerate(programs):
                    if trial == 0 or times[i] < RULED_OUT_RATIO * min(times):
                        start = time.perf_counter()
                        program.run([], 0, self._threads)
                        times[i] = min(times[i], time.perf_counter() - start)
            best = times.index(min(times))
            self._best[key] = times[best], tilings[best]
        return self._best[key]

    def _program(self, chain: Sequence[Convolve], tiling: Tiling, locate: Locate) -> Program:
        program = Program(self._kernels)
        convs, keep = c_chain(chain, tiling, locate)
        program.add("conv", convs, len(chain), keep=keep)
        return program


def _timing_key(c: Convolve) -> tuple[object, ...]:
    """Everything that a convolution's time depends on, with its number of weights rounded to one digit."""
    weights = float(f"{c.weight.values.numel():.1g}")
    return (
        c.weight.shape,
        weights,
        c.input.layout,
        c.out.layout,
        c.stride,
        c.activation,
        c.residual is None,
        c.residual is c.out.may_overwrite,
    )


@cache
def tuner(kernels: Kernels, threads: int) -> Tuner:
    """The process's tuner for this number of threads. All networks share the tilings that it finds."""
    return Tuner(kernels, threads)
