import pytest
import torch
import torch.nn.functional as F

from fggp.lab.training.batches import batch_sizes, epoch_seeds, flipped, shifted, training_batches
from fggp.lab.training.data import Augmentation, Split


def random_images(count: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def numbered(count: int) -> Split:
    """A split whose images can be told apart: image i is full of i + 1."""
    labels = torch.arange(count)
    return Split((labels + 1).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4), labels)


@pytest.mark.parametrize("pad", [0, 1, 4])
def test_shifted_is_padding_then_cropping_each_image(pad):
    images = random_images(9, 6, 8)
    generator = torch.Generator().manual_seed(1)
    top, left = torch.randint(2 * pad + 1, (2, 9), generator=generator)
    naive = torch.stack(
        [F.pad(image, (pad,) * 4)[:, y : y + 6, x : x + 8] for image, y, x in zip(images, top, left, strict=True)]
    )
    assert torch.equal(shifted(images, top, left, pad), naive)


def test_shifted_by_the_padding_itself_is_the_image():
    images = random_images(3, 5, 5)
    middle = torch.full((3,), 2)
    assert torch.equal(shifted(images, middle, middle, 2), images)


def test_flipped_mirrors_the_chosen_images_only():
    images = random_images(4, 3, 5)
    which = torch.tensor([True, False, False, True])
    naive = torch.stack([image.flip(2) if flip else image for image, flip in zip(images, which, strict=True)])
    assert torch.equal(flipped(images, which), naive)


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (129, 128), (128, 128), (3, 128), (7, 1)])
def test_every_image_once_in_batches_of_almost_one_size(count, batch_size):
    generator = torch.Generator().manual_seed(0)
    batches = list(training_batches(numbered(count), batch_size, Augmentation(shift=1, flip=True), generator))
    sizes = [len(batch) for batch in batches]
    assert sizes == batch_sizes(count, batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert sorted(torch.cat([batch.labels for batch in batches]).tolist()) == list(range(count))
    for batch in batches:
        assert torch.equal(batch.images.amax(dim=(1, 2, 3)).long(), batch.labels + 1)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize(("count", "batch_size"), [(17, 4), (50, 16), (8, 8)])
def test_parts_of_all_ranks_joined_are_the_batches(count, batch_size, ranks):
    def epoch(*place: int) -> list[Split]:
        generator = torch.Generator().manual_seed(0)
        split = Split(random_images(count, 4, 4), torch.arange(count))
        return list(training_batches(split, batch_size, Augmentation(shift=1, flip=True), generator, *place))

    for batch, *parts in zip(epoch(), *(epoch(rank, ranks) for rank in range(ranks)), strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_batches_are_a_function_of_the_generator():
    def epoch(seed: int) -> torch.Tensor:
        batches = training_batches(numbered(50), 16, Augmentation(1, True), torch.Generator().manual_seed(seed))
        return torch.cat([batch.images for batch in batches])

    torch.manual_seed(1)
    first = epoch(3)
    torch.manual_seed(2)
    assert torch.equal(first, epoch(3))
    assert not torch.equal(first, epoch(4))


def test_ranks_share_the_batches_and_have_draws_of_their_own():
    orders, layers = zip(*(epoch_seeds(3, 5, rank) for rank in range(8)), strict=True)
    assert len({*orders}) == 1
    assert len({*layers}) == 8
    assert epoch_seeds(3, 5) == (orders[0], layers[0])


def test_seeds_and_epochs_give_streams_of_their_own():
    seeds = [word for seed in range(30) for epoch in range(30) for word in epoch_seeds(seed, epoch)]
    assert len(set(seeds)) == len(seeds)
