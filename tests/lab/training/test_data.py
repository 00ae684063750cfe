import hashlib
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fggp.lab.base.errors import UsageError
from fggp.lab.training.data import ImageData, Split, load_data, stratified_split
from fggp.lab.training.settings import TrainSettings


def load(console, **settings) -> ImageData:
    return load_data(TrainSettings(**settings).resolve(), console)


def rows(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


def test_digits_splits_are_disjoint_and_complete(console):
    data = load(console, data="digits")
    parts = [data.train, data.val, data.test]
    assert [len(part) for part in parts] == [1294, 144, 359]
    assert len(rows(data.train) | rows(data.val) | rows(data.test)) == 1797  # no two digits are the same image
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.shape[1:] == (1, 8, 8)
    for part in parts:
        shares = part.labels.bincount(minlength=10) / len(part)
        assert (shares - 0.1).abs().max() < 0.02


def test_digits_splits_stay_what_they_are(console):
    data = load(console, data="digits")
    digest = hashlib.sha256()
    for part in (data.train, data.val, data.test):
        digest.update(part.images.numpy().tobytes())
    assert digest.hexdigest()[:16] == "e1a8a48daa9c6fa8"


def test_held_out_images_do_not_depend_on_the_seed(console):
    one, two = (load(console, data="digits", seed=seed).val for seed in (0, 1))
    assert torch.equal(one.images, two.images)


def test_nothing_held_out(console):
    data = load(console, data="digits", holdout=0)
    assert data.val is None
    assert len(data.train) == 1438


@pytest.mark.parametrize("holdout", [0.0001, 0.9999])
def test_a_holdout_that_leaves_a_split_empty_is_refused(console, holdout):
    with pytest.raises(UsageError, match="holdout"):
        load(console, data="digits", holdout=holdout)


@pytest.mark.parametrize("sizes", [(5, 5), (1, 1, 1), (100, 7, 30), (1000, 3)])
def test_stratified_split_takes_the_same_share_of_every_class(sizes):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    first, second = stratified_split(labels, 0.3, seed=5)
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(len(labels)))
    assert len(second) == round(0.3 * len(labels))
    taken = labels[second].bincount(minlength=len(sizes))
    assert (taken - 0.3 * torch.tensor(sizes)).abs().max() <= 1


def test_moments_are_those_of_the_training_images(console):
    data = load(console, data="digits")
    mean, std = data.moments()
    images = data.train.images.double()
    assert mean.item() == pytest.approx(images.mean().item())
    assert std.item() == pytest.approx(images.std(correction=0).item())


def test_a_constant_channel_does_not_divide_by_zero(console, image_folder):
    for file in image_folder.rglob("*.png"):
        pixels = np.asarray(Image.open(file)).copy()
        pixels[..., 2] = 0
        Image.fromarray(pixels).save(file)
    _, std = load(console, data=f"folder:{image_folder}").moments()
    assert (std > 0).all()


def test_folder(console, image_folder):
    data = load(console, data=f"folder:{image_folder}")
    assert data.name == "pets"
    assert data.classes == ("cat", "dog")
    assert [len(part) for part in (data.train, data.val, data.test)] == [18, 2, 8]
    assert data.test.labels.tolist() == [0] * 4 + [1] * 4
    first = np.asarray(Image.open(image_folder / "test" / "cat" / "0.png"))
    assert np.array_equal(data.test.images[0].permute(1, 2, 0).numpy(), first)


def test_folder_images_are_brought_to_one_size(console, image_folder):
    Image.new("RGB", (50, 20), (255, 0, 0)).save(image_folder / "test" / "dog" / "3.png")
    Image.new("L", (3, 5), 200).save(image_folder / "test" / "dog" / "2.png")
    data = load(console, data=f"folder:{image_folder}")
    assert data.test.images.shape == (8, 3, 6, 8)
    assert data.test.images[7].flatten(1).float().mean(1).tolist() == [255, 0, 0]
    assert load(console, data=f"folder:{image_folder}", image_size=5).train.images.shape[1:] == (3, 5, 5)


@pytest.mark.parametrize("part", ["train", "test"])
def test_folder_without_a_part(console, image_folder, part):
    shutil.rmtree(image_folder / part)
    with pytest.raises(UsageError, match=f"{part}/ is missing"):
        load(console, data=f"folder:{image_folder}")


def test_folder_whose_classes_differ(console, image_folder):
    (image_folder / "test" / "cat").rename(image_folder / "test" / "lion")
    with pytest.raises(UsageError, match=r"\['cat', 'lion'\]"):
        load(console, data=f"folder:{image_folder}")


def test_folder_without_classes(console, tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    with pytest.raises(UsageError, match="a folder per class"):
        load(console, data=f"folder:{tmp_path}")


def test_folder_with_an_empty_class(console, image_folder):
    shutil.rmtree(image_folder / "train" / "dog")
    (image_folder / "train" / "dog").mkdir()
    with pytest.raises(UsageError, match="dog"):
        load(console, data=f"folder:{image_folder}")


@pytest.mark.parametrize("content", [b"no image", None])
def test_folder_with_a_broken_image_names_it(console, image_folder, content):
    file = image_folder / "train" / "dog" / "7.png"
    file.write_bytes(content or file.read_bytes()[:90])
    with pytest.raises(UsageError, match=r"dog.7\.png"):
        load(console, data=f"folder:{image_folder}")


def test_unknown_data(console):
    with pytest.raises(UsageError, match="data is 'mnist3'; it must be digits, cifar10"):
        load(console, data="mnist3")


def test_image_size_is_for_folders(console):
    with pytest.raises(UsageError, match="image_size"):
        load(console, data="digits", image_size=16)


def test_data_name(console):
    assert load(console, data="digits", data_name="Digits (8×8)").name == "Digits (8×8)"
