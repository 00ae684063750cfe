"""Reading an ONNX file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]


def read(source: str | os.PathLike[str] | onnx.ModelProto) -> onnx.ModelProto:
    """An ONNX file with its external data; a model as it is.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no ONNX file, or its external data are missing.
    """
    if isinstance(source, onnx.ModelProto):
        return source
    path = Path(source)
    if path.is_dir() or not path.exists():
        raise FileNotFoundError(f"{path} is no file; give an ONNX file")
    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise ValueError(f"{path} is no ONNX file: {error}") from error
    except onnx.checker.ValidationError as error:
        raise ValueError(f"the weights of {path} are in another file, which cannot be read: {error}") from error
    if not model.graph.output:
        raise ValueError(f"{path} is no ONNX file, or has no outputs")
    return model


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The texts of a file by name."""
    return {entry.key: entry.value for entry in model.metadata_props}


def as_array(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Numbers with float16, bfloat16 and float64 as float32, in which they are computed."""
    if array.dtype.kind == "f" or array.dtype.name in ("bfloat16",):
        return array.astype(np.float32, copy=False)
    return array


def sparse_array(sparse: onnx.SparseTensorProto) -> np.ndarray[Any, Any]:
    """A sparse tensor with its zeros."""
    values, places = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
    dense = np.zeros(list(sparse.dims), dtype=values.dtype)
    if places.ndim == 2:
        dense[tuple(places.T)] = values
    else:
        dense.reshape(-1)[places] = values
    return dense
