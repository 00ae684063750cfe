"""The dtypes that a small file can hold: names in safetensors, how their bits are read, and how many at once."""

import torch

CODE_OF_DTYPE = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""safetensors' name of each dtype."""

DTYPE_OF_CODE = {code: dtype for dtype, code in CODE_OF_DTYPE.items()}

ROUNDABLE = (torch.float32, torch.float64)
"""The dtypes whose values may be stored as bfloat16, which takes less space."""

INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""An integer dtype for each element size in bytes, to read an element's bits."""

CHUNK = 1 << 16
"""Elements that are coded or decoded at once: few enough for the processor's cache, where each pass is fastest."""
