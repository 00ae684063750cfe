"""Image data: named data sets and folders, as uint8 tensors with a held-out validation split."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torchvision import datasets

from fggp.lab.base.errors import UsageError
from fggp.lab.training.settings import ResolvedSettings

# Fixed, not the run's seed: all runs see the same training and held-out images.
HOLDOUT_SEED = 20_241_109
DIGITS_TEST_SEED = 1_797
DIGITS_TEST_SHARE = 0.2
DECODE_CHUNK = 256


@dataclass(frozen=True)
class Split:
    """Images [N, C, H, W], uint8, and their labels [N], int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "Split":
        return Split(self.images[rows], self.labels[rows])

    def to(self, device: torch.device) -> "Split":
        """Return the split on `device`."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image: a shift by up to `shift` pixels (zeros fill the gap), a horizontal flip."""

    shift: int
    flip: bool


@dataclass(frozen=True)
class ImageData:
    """A classification task in memory.

    Attributes:
        name: its name in tables.
        classes: class names, in label order.
        train: images to train on.
        val: images held out of the training images; None if there are none.
        test: images for the reported results; no choice depends on them.
        augmentation: of training images.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split
    augmentation: Augmentation

    def to(self, device: torch.device) -> "ImageData":
        """Return the data on `device`."""
        val = None if self.val is None else self.val.to(device)
        return replace(self, train=self.train.to(device), val=val, test=self.test.to(device))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation [1, C, 1, 1] of the training images, per channel, in 0…255."""
        images = self.train.images
        # Sums of integers are exact: the result does not depend on device or number of threads.
        count = images.numel() // images.shape[1]
        total, squares = (
            torch.stack([(batch.long() ** power).sum(dim=(0, 2, 3)) for batch in torch.split(images, 4096)]).sum(0)
            for power in (1, 2)
        )
        mean = total.double() / count
        variance = squares.double() / count - mean**2
        std = torch.where(variance > 0, variance, 1.0).sqrt()  # a channel that never varies becomes zero, not NaN
        return mean.float().view(1, -1, 1, 1), std.float().view(1, -1, 1, 1)


def load_data(settings: ResolvedSettings, console: Console) -> ImageData:
    """Load the data of a run, and hold out a share of its training images.

    Raises:
        UsageError: the name is unknown, the data cannot be downloaded, or the folder has the wrong structure.
    """
    kind, _, path = settings.data.partition(":")
    if kind == "folder" and path:
        data = _folder(Path(path), settings.image_size, console)
    elif settings.image_size is not None:
        raise UsageError(f"image_size is {settings.image_size}; it must be left out for data {settings.data!r}")
    elif settings.data == "digits":
        data = _digits()
    elif settings.data in _TORCHVISION:
        data = _torchvision(settings.data, settings.data_dir)
    else:
        raise UsageError(f"data is {settings.data!r}; it must be digits, {', '.join(_TORCHVISION)} or folder:PATH")
    data = replace(data, name=settings.data_name or data.name)
    if settings.holdout == 0:
        return data
    kept, held = stratified_split(data.train.labels, settings.holdout, HOLDOUT_SEED)
    if not 0 < len(held) < len(data.train):
        raise UsageError(f"holdout is {settings.holdout}, which takes {len(held)} of {len(data.train)} training images")
    return replace(data, train=data.train[kept], val=data.train[held])


def stratified_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split rows in two, every class in the same proportion to within one image.

    Args:
        labels: class of each row, [N].
        share: of the rows in the second part, in (0, 1).
        seed: of the draw within each class.

    Returns:
        The rows of the first and of the second part, int64, each ascending.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # Evenly spaced picks from rows grouped by class give equal shares for any class sizes.
    count = round(share * len(labels))
    picks = ((torch.arange(count, dtype=torch.float64) + 0.5) * len(labels) / max(count, 1)).long()
    second = torch.zeros(len(labels), dtype=torch.bool)
    second[by_class[picks]] = True
    return (~second).nonzero().flatten(), second.nonzero().flatten()


def _digits() -> ImageData:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy((digits.images * 15).astype(np.uint8)).unsqueeze(1)  # 0…16 becomes 0…240
    every = Split(images, torch.from_numpy(digits.target).long())
    train, test = stratified_split(every.labels, DIGITS_TEST_SHARE, DIGITS_TEST_SEED)
    return ImageData("digits", tuple("0123456789"), every[train], None, every[test], Augmentation(shift=1, flip=False))


_TORCHVISION: dict[str, tuple[str, Callable[..., datasets.VisionDataset]]] = {
    "cifar10": ("CIFAR-10", datasets.CIFAR10),
    "cifar100": ("CIFAR-100", datasets.CIFAR100),
    "fashion-mnist": ("Fashion-MNIST", datasets.FashionMNIST),
}


def _torchvision(source: str, root: Path) -> ImageData:
    name, dataset = _TORCHVISION[source]
    try:
        parts = [dataset(root, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise UsageError(f"data is {source!r}, but it is neither in {root} nor can be downloaded: {error}") from error
    train, test = (Split(_as_nchw(part.data), torch.as_tensor(part.targets)) for part in parts)
    return ImageData(name, tuple(parts[0].classes), train, None, test, Augmentation(shift=4, flip=True))


def _as_nchw(images: np.ndarray | Tensor) -> Tensor:
    images = torch.as_tensor(images)
    return images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def _folder(root: Path, image_size: int | None, console: Console) -> ImageData:
    listings = [_listing(root, part) for part in ("train", "test")]
    classes, test_classes = (listing.classes for listing in listings)
    if classes != test_classes:
        differ = sorted(set(classes) ^ set(test_classes))
        raise UsageError(f"{root}: train/ and test/ must hold the same class folders; {differ[:5]} are in one only")
    if image_size is None:
        width, height = _open(listings[0].samples[0][0]).size
    else:
        width = height = image_size
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        train, test = (
            Split(
                _decode([path for path, _ in listing.samples], width, height, progress),
                torch.tensor(listing.targets),
            )
            for listing in listings
        )
    return ImageData(root.resolve().name, tuple(classes), train, None, test, Augmentation(shift=4, flip=True))


def _listing(root: Path, part: str) -> datasets.ImageFolder:
    if not (root / part).is_dir():
        raise UsageError(f"{root} must hold train/ and test/, each with a folder per class; {part}/ is missing")
    try:
        return datasets.ImageFolder(root / part)
    except FileNotFoundError as error:
        raise UsageError(f"{root / part} must hold a folder per class, each with images: {error}") from error


def _decode(paths: list[str], width: int, height: int, progress: Progress) -> Tensor:
    """Read images as RGB into one tensor [N, 3, height, width]; other sizes are scaled and centre-cropped."""
    images = np.empty((len(paths), height, width, 3), np.uint8)
    task = progress.add_task("reading images", total=len(paths))

    def decode(start: int) -> None:
        for row, path in enumerate(paths[start : start + DECODE_CHUNK], start):
            image = _open(path)
            images[row] = np.asarray(image if image.size == (width, height) else ImageOps.fit(image, (width, height)))
            progress.advance(task)

    # Pillow releases the interpreter lock while it decodes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode, range(0, len(paths), DECODE_CHUNK)):
            pass
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _open(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    # Pillow raises SyntaxError for a broken PNG and ValueError for some broken headers.
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"{path} is not an image that can be read: {error}") from error
