"""The C library `libfggp`, which lies in this package; fggp.h describes its interface."""

from ctypes import CDLL, POINTER, Structure, c_char_p, c_int32, c_int64, c_void_p
from pathlib import Path

INTERFACE = 8  # FGGP_INTERFACE in fggp.h
OK, OUT_OF_MEMORY, REFUSED = range(3)


class Array(Structure):
    """`fggp_array`."""

    _fields_ = (
        ("name", c_char_p),
        ("type", c_int32),
        ("rank", c_int32),
        ("shape", POINTER(c_int64)),
        ("data", c_void_p),
    )


def _opened() -> CDLL:
    folder = Path(__file__).parent
    for path in folder.glob("libfggp.*"):
        library = CDLL(str(path))
        break
    else:
        raise ImportError(
            f"there is no libfggp in {folder}: install fggp-runtime from a wheel, or where there is GCC or Clang"
        )
    if library.fggp_interface() != INTERFACE:
        raise ImportError(f"{path} belongs to another version of fggp-runtime: install it again")
    network, networks = c_void_p, POINTER(c_void_p)
    library.fggp_load.argtypes = (c_char_p, networks)
    library.fggp_load_bytes.argtypes = (c_char_p, c_int64, networks)
    library.fggp_run.argtypes = (network, POINTER(Array), c_int32, c_int32, POINTER(POINTER(Array)), POINTER(c_int32))
    library.fggp_free.argtypes = (network,)
    library.fggp_free.restype = None
    for function in (library.fggp_error, library.fggp_describe):
        function.argtypes = (network,)
        function.restype = c_char_p
    return library


library = _opened()
