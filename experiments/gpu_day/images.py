"""The images on their way to the GPU machine: their JPEG data in one file, which is a tenth of the decoded pixels."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from fggp.lab.training.data import HOLDOUT_SEED, Augmentation, ImageData, Split, load_data, stratified_split
from fggp.lab.training.settings import ResolvedSettings, TrainSettings


def pack(folder: Path, file: Path) -> None:
    """Write the images of train/ and test/ in a folder, each with a folder per class, into an npz file."""
    settings = TrainSettings(data=f"folder:{folder}", device="cpu", holdout=0).resolve()
    data = load_data(settings, Console(quiet=True))
    arrays = {"classes": np.array(data.classes)}
    for part, split in (("train", data.train), ("test", data.test)):
        # In the order of load_data: classes by name, and images by name in each.
        paths = [path for name in data.classes for path in sorted((folder / part / name).iterdir())]
        content = [path.read_bytes() for path in paths]
        arrays[f"{part} bytes"] = np.frombuffer(b"".join(content), np.uint8)
        arrays[f"{part} lengths"] = np.array([len(each) for each in content])
        arrays[f"{part} labels"] = split.labels.numpy()
        arrays[f"{part} digest"] = np.array(digest(split.images))
    np.savez_compressed(file, **arrays)


def unpack(file: Path, into: Path) -> dict[str, Any]:
    """Decode the images of `pack` into a file for `load`; say whether they have the pixels that they had there."""
    packed = np.load(file)
    splits: dict[str, Any] = {"classes": packed["classes"].tolist()}
    same = True
    for part in ("train", "test"):
        content, ends = packed[f"{part} bytes"].tobytes(), packed[f"{part} lengths"].cumsum().tolist()
        starts = [0, *ends[:-1]]
        pixels = [decoded(content[start:end]) for start, end in zip(starts, ends, strict=True)]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
        splits[part] = (images, torch.from_numpy(packed[f"{part} labels"]))
        same &= digest(images) == packed[f"{part} digest"].item()
    torch.save(splits, into)
    return {"images": [len(splits[part][1]) for part in ("train", "test")], "same pixels": same}


def load(file: Path, settings: ResolvedSettings) -> ImageData:
    """Return what `load_data` returns for these settings, of the file that `unpack` wrote."""
    content = torch.load(file, mmap=True)
    train, test = Split(*content["train"]), Split(*content["test"])
    kept, held = stratified_split(train.labels, settings.holdout, HOLDOUT_SEED)
    name = settings.data_name or "images"
    return ImageData(name, tuple(content["classes"]), train[kept], train[held], test, Augmentation(shift=4, flip=True))


def decoded(jpeg: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image.convert("RGB"))


def digest(images: torch.Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()
