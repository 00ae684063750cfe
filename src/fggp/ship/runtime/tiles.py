"""How a convolution is cut up for registers and caches: what could be best, and by trial what is."""

import time
from collections.abc import Callable, Iterator, Sequence
from ctypes import Array
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from fggp.ship.runtime.instructions import Buffer, Convolve
from fggp.ship.runtime.kernels import CConv, CTensor, Kernels, Program

MAX_ROWS, MAX_COLUMNS = 4, 8
# Bytes of input that one tile goes through before the next output channel goes through them again: what fits the first
# cache, or the second one well; 0: all there is.
WORKING_SETS = (32 << 10, 128 << 10, 0)
LEAST_CHUNK = 4
TRIALS = 6
# Times the best one's time that rules a tiling out.
HOPELESS = 1.3


@dataclass(frozen=True)
class Tiling:
    """How a chain of convolutions is cut up.

    Args:
        rows: rows of vectors whose sums stay in registers.
        columns: vectors in each.
        chunks: for each convolution: input channels gone through for one output channel, before the next one's turn.
    """

    rows: int
    columns: int
    chunks: tuple[int, ...]


def _even(width: int, most: int) -> int:
    """The size of as few parts as possible, none above ``most``, as even as possible."""
    parts = -(-width // most)
    return -(-width // parts)


def candidates(chain: Sequence[Convolve], kernels: Kernels) -> list[Tiling]:
    """Tilings worth trying, the likeliest first."""
    out = chain[0].out.layout
    if out.lanes == 1:
        # A single image's input is small, and each weight is read once.
        vectors = -(-((out.height - 1) * out.row + out.width) // kernels.lanes)
        columns = _even(vectors, min(MAX_COLUMNS, kernels.registers))
        rows = max(1, min(2, -(-vectors // columns), kernels.registers // columns))
        return [Tiling(rows, columns, (chain[0].weight.shape[1],))]
    return list(dict.fromkeys(_for_batches(chain, kernels)))


def _for_batches(chain: Sequence[Convolve], kernels: Kernels) -> Iterator[Tiling]:
    out = chain[0].out.layout
    flat = all(c.stride == 1 and c.out.layout.row == c.input.layout.row == out.width for c in chain)
    for most in (4, 8):
        columns = _even(out.width * out.height if flat else out.width, most)
        for registers in (kernels.registers, kernels.registers // 2):
            rows = max(1, min(MAX_ROWS, registers // columns))
            for working_set in WORKING_SETS:
                yield Tiling(rows, columns, tuple(_chunk(c, rows, columns, working_set) for c in chain))


def _chunk(convolve: Convolve, rows: int, columns: int, working_set: int) -> int:
    """Input channels whose part under one tile is about the working set."""
    _, inputs, height, width = convolve.weight.shape
    down, across = (rows - 1) * convolve.stride + height, (columns - 1) * convolve.stride + width
    chunk = working_set // (down * across * convolve.input.layout.lanes * 4) if working_set else inputs
    return _even(inputs, min(max(chunk, LEAST_CHUNK), inputs))


Place = Callable[[Buffer | None], CTensor]


def c_chain(chain: Sequence[Convolve], tiling: Tiling, place: Place) -> tuple[Array[CConv], tuple[Tensor, ...]]:
    """The C structures of a chain of convolutions, and what owns the memory they point to."""
    convs = (CConv * len(chain))()
    keep: list[Tensor] = []
    for i, (c, chunk) in enumerate(zip(chain, tiling.chunks, strict=True)):
        entries, starts = c.weight.entries(c.input.layout, c.padding, c.dilation, chunk)
        tensors = place(c.input), place(c.out), place(c.residual)
        addresses = entries.data_ptr(), starts.data_ptr(), c.weight.bias.data_ptr()
        chunks = -(-c.weight.shape[1] // chunk)
        convs[i] = CConv(*tensors, *addresses, chunks, c.stride, c.relu, tiling.rows, tiling.columns)
        keep += entries, starts, c.weight.bias
    return convs, tuple(keep)


class Tuner:
    """Finds the best tiling by trial, once for each shape of convolution.

    Args:
        kernels: what runs them.
        threads: how many work.
    """

    def __init__(self, kernels: Kernels, threads: int) -> None:
        self._kernels, self._threads = kernels, threads
        self._best: dict[tuple[object, ...], tuple[float, Tiling]] = {}

    def choose(self, chain: Sequence[Convolve], place: Place) -> tuple[float, Tiling]:
        """The tiling that takes the least time, and how long in seconds (0 where there was no choice).

        Args:
            chain: the convolutions.
            place: says where their buffers are; what is in them is lost.
        """
        tilings = candidates(chain, self._kernels)
        if len(tilings) == 1:
            return 0, tilings[0]
        key = tuple(x for c in chain for x in _shape(c))
        if key not in self._best:
            programs = [self._program(chain, tiling, place) for tiling in tilings]
            times = [float("inf")] * len(tilings)
            for trial in range(TRIALS):
                # In turns, so that a moment's disturbance meets one trial of each and not all of one.
                for i, program in enumerate(programs):
                    if trial == 0 or times[i] < HOPELESS * min(times):
                        start = time.perf_counter()
                        program.run([], 0, self._threads)
                        times[i] = min(times[i], time.perf_counter() - start)
            best = times.index(min(times))
            self._best[key] = times[best], tilings[best]
        return self._best[key]

    def _program(self, chain: Sequence[Convolve], tiling: Tiling, place: Place) -> Program:
        program = Program(self._kernels)
        convs, keep = c_chain(chain, tiling, place)
        program.add("conv", convs, len(chain), keep=keep)
        return program


def _shape(c: Convolve) -> tuple[object, ...]:
    """All that a convolution's time depends on, weights counted to one digit."""
    left = float(f"{c.weight.values.numel():.1g}")
    return c.weight.shape, left, c.input.layout, c.out.layout, c.stride, c.residual is None, c.residual is c.out.over


@cache
def tuner(kernels: Kernels, threads: int) -> Tuner:
    """The process's tuner for so many threads: what is found for one network serves the next."""
    return Tuner(kernels, threads)
