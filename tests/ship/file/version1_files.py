"""Writes files of version 1, which fggp reads and does not write any more."""

import json
import zlib

import numpy as np
import torch

from fggp.ship.file.dtypes import CODE_OF_DTYPE
from fggp.ship.file.state import model_tensors
from small_files import bits


def save(path, model, values=None):
    """Write a model's file. A tensor of 100 elements or more is sparse if a quarter of it is zero."""
    metadata, pieces, first_name = {"fggp": "1"}, {}, {}
    for name, t in model_tensors(model, model.state_dict()).items():
        tensor = t.tensor.detach()
        if t.memory_key in first_name:
            metadata[f"shared:{name}"] = first_name[t.memory_key]
            continue
        if t.memory_key is not None:
            first_name[t.memory_key] = name
        flat = bits(tensor)
        if len(flat) >= 100 and flat.count_nonzero() < 0.75 * len(flat):
            nonzero = flat[flat != 0].view(tensor.dtype)
            metadata[f"sparse:{name}"] = f"{CODE_OF_DTYPE[tensor.dtype]} {list(tensor.shape)}"
            pieces[f"{name}:gaps"] = gap_codes(flat.nonzero().flatten().tolist())
            rounded = values is not None and tensor.dtype in (torch.float32, torch.float64)
            pieces[f"{name}:values"] = nonzero.to(values) if rounded else nonzero
        else:
            pieces[name] = tensor.contiguous()
    header, data = {"__metadata__": metadata}, b""
    for name, piece in sorted(pieces.items(), key=lambda item: -item[1].element_size()):
        raw = bits(piece).numpy().tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": CODE_OF_DTYPE[piece.dtype], "shape": list(piece.shape), "data_offsets": place}
        data += raw
    header[":crc32"] = {"dtype": "U8", "shape": [4], "data_offsets": [len(data), len(data) + 4]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    raw = len(text).to_bytes(8, "little") + text + data
    path.write_bytes(raw + zlib.crc32(raw).to_bytes(4, "little"))


def gap_codes(positions):
    """Positions as gaps, by the obvious loop."""
    codes, following = [], 0
    for position in positions:
        gap = position - following
        codes += [255] * (gap // 255) + [gap % 255]
        following = position + 1
    return torch.from_numpy(np.array(codes, dtype=np.uint8))
