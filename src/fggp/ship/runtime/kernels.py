"""The C interface of the sparse runtime's kernels: its structures, and the programs that are built of them."""

from ctypes import CDLL, POINTER, Structure, byref, c_double, c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

from fggp import native
from fggp.native import KernelsMissingError as KernelsMissingError  # importable from here too
from fggp.native import raise_if_failed
from fggp.ship.graph.operations import Activation


class CTensor(Structure):
    """`fggp_tensor`: an activation's place in memory, in cells of ``lanes`` floats (see `ActivationLayout`)."""

    _fields_ = (
        ("data", c_void_p),
        ("lanes", c_int32),
        ("groups", c_int32),
        ("channels", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("row", c_int64),
        ("plane", c_int64),
        ("group", c_int64),
    )


# The functions of `fggp_activation`, in the order of its enumeration from 1 on.
ACTIVATIONS = (
    "clamp",
    "leaky_relu",
    "elu",
    "hard_sigmoid",
    "hard_swish",
    "sigmoid",
    "silu",
    "tanh",
    "gelu",
    "gelu_tanh",
    "mish",
)


class CActivation(Structure):
    """`fggp_activation`: a function that is applied to each number of a result."""

    _fields_ = (("kind", c_int32), ("a", c_double), ("b", c_double), ("c", c_double))

    @classmethod
    def of(cls, activation: Activation | None) -> "CActivation":
        """The structure of an activation; None: of the identity."""
        if activation is None:
            return cls(0)
        return cls(1 + ACTIVATIONS.index(activation.name), *activation.numbers)


class CConv(Structure):
    """`fggp_conv`: a sparse convolution."""

    _fields_ = (
        ("input", CTensor),
        ("out", CTensor),
        ("residual", CTensor),
        ("entries", c_void_p),
        ("starts", c_void_p),
        ("bias", c_void_p),
        ("activation", CActivation),
        ("chunks", c_int32),
        ("stride", c_int32),
        ("tile_rows", c_int32),
        ("tile_columns", c_int32),
    )


class CPool(Structure):
    """`fggp_pool`: windows of each plane, to pool or to unfold."""

    _fields_ = (
        ("input", CTensor),
        ("out", CTensor),
        ("kernel", c_int32 * 2),
        ("stride", c_int32 * 2),
        ("padding", c_int32 * 2),
        ("dilation", c_int32 * 2),
        ("count_padding", c_int32),
        ("divisor", c_float),
    )


class CStrides(Structure):
    """`fggp_strides`: the strides of a caller's tensor, in floats."""

    _fields_ = (("image", c_int64), ("channel", c_int64), ("row", c_int64), ("pixel", c_int64))


_TENSOR, _STRIDES, _ACTIVATION = POINTER(CTensor), POINTER(CStrides), POINTER(CActivation)
_ARGUMENTS_OF_ADD = {
    "conv": (POINTER(CConv), c_int32),
    "product": (POINTER(CConv),),  # a convolution whose output is one pixel a channel
    "strided": (POINTER(CConv),),  # a convolution of single images with stride 2
    "max_pool": (POINTER(CPool),),
    "average_pool": (POINTER(CPool),),
    "unfold": (POINTER(CPool),),
    "adaptive_average": (_TENSOR, _TENSOR),
    "sum": (_TENSOR, _TENSOR, _TENSOR, _ACTIVATION),
    "gate": (_TENSOR, _TENSOR, _TENSOR, _ACTIVATION),
    "affine": (_TENSOR, _TENSOR, c_void_p, c_void_p, _ACTIVATION),
    "copy": (_TENSOR, _TENSOR, c_void_p, c_int32),
    "flatten": (_TENSOR, _TENSOR),
    "load": (c_int32, _STRIDES, _TENSOR),
    "store": (_TENSOR, c_int32, _STRIDES),
}


class Kernels:
    """One build of the kernels.

    Args:
        library: the loaded library.

    Attributes:
        cpu: the name of the vector instructions it uses.
        lanes: the number of floats in a vector.
        registers: the number of vectors of sums that a convolution can keep in registers.
    """

    def __init__(self, library: CDLL) -> None:
        self.library = library
        library.fggp_program_new.restype = c_void_p
        library.fggp_program_free.argtypes = (c_void_p,)
        library.fggp_program_run.argtypes = (c_void_p, POINTER(c_void_p), c_int32, c_int32, POINTER(c_double))
        library.fggp_program_run.errcheck = raise_if_failed
        for name, arguments in _ARGUMENTS_OF_ADD.items():
            function = getattr(library, f"fggp_add_{name}")
            function.argtypes = (c_void_p, *arguments)
            function.errcheck = raise_if_failed
        self.cpu: str = library.fggp_cpu().decode()
        self.lanes: int = library.fggp_lanes()
        self.registers: int = library.fggp_registers()


class Program:
    """A list of operations that run in one call.

    Args:
        kernels: the kernels that run them.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._library = kernels.library
        self._handle = c_void_p(kernels.library.fggp_program_new())
        if not self._handle:
            raise MemoryError("the kernels ran out of memory")
        self._kept: list[Any] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, name: str, *arguments: Any, keep: tuple[Any, ...] = ()) -> None:
        """Add an operation.

        Args:
            name: its name in `fggp.h`, after ``fggp_add_``.
            arguments: as the header says; structures are passed by reference.
            keep: the owners of the memory that the arguments point to, kept alive as long as the program.
        """
        given = [byref(a) if isinstance(a, Structure) else a for a in arguments]
        getattr(self._library, f"fggp_add_{name}")(self._handle, *given)
        self._kept += keep
        self._count += 1

    def run(self, addresses: list[int], images: int, threads: int, seconds: Any = None) -> None:
        """Run all operations on the caller's tensors.

        Args:
            addresses: of the inputs and outputs, by slot: the number that a load or store has as its argument.
            images: the number of images.
            threads: the number of threads, the caller's included.
            seconds: a C array with a double for each operation, to which its time is added; None: no timing.
        """
        slots = (c_void_p * len(addresses))(*addresses)
        self._library.fggp_program_run(self._handle, slots, images, threads, seconds)

    def __del__(self) -> None:
        self._library.fggp_program_free(self._handle)


@cache
def load() -> Kernels:
    """The kernels for this processor.

    Raises:
        KernelsMissingError: fggp was installed without them; the message says what to do.
    """
    return Kernels(native.load())
