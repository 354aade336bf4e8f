"""The batch transforms, against torchvision's own functions, one image at a time."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as vision

from satstore.datasets.transforms import (
    CIFAR_MEAN,
    CIFAR_STD,
    Normalize,
    RandomCrop,
    RandomFlip,
    Resize,
    ToRGB,
    crop_each,
    flip_each,
)
from satstore.errors import ConfigError


def make_images(n_images: int, n_channels: int = 3, height: int = 12, width: int = 12) -> torch.Tensor:
    rng = np.random.default_rng(n_images)
    return torch.from_numpy(rng.integers(0, 256, (n_images, n_channels, height, width), dtype=np.uint8))


def places(image: torch.Tensor, cropped: torch.Tensor, padding: int) -> list[tuple[int, int]]:
    """Return the offsets at which torchvision's crop of the padded image is what was cropped."""
    size = cropped.shape[-1]
    padded = vision.pad(image, [padding] * 4)
    rows, columns = padded.shape[-2] - size + 1, padded.shape[-1] - size + 1
    every = [(top, left) for top in range(rows) for left in range(columns)]
    return [place for place in every if torch.equal(vision.crop(padded, *place, size, size), cropped)]


def test_crop_each__equals_torchvision_image_by_image() -> None:
    images = make_images(40, height=14, width=17)
    tops, lefts = torch.randint(5, (40,)), torch.randint(8, (40,))
    expected = [
        vision.crop(image, int(top), int(left), 10, 10)
        for image, top, left in zip(images, tops, lefts, strict=True)
    ]
    assert torch.equal(crop_each(images, tops, lefts, 10), torch.stack(expected))


def test_flip_each__mirrors_only_the_chosen() -> None:
    images = make_images(9)
    chosen = torch.arange(9) % 2 == 0
    expected = [
        vision.horizontal_flip(image) if mirrored else image
        for image, mirrored in zip(images, chosen, strict=True)
    ]
    assert torch.equal(flip_each(images, chosen), torch.stack(expected))


def test_random_crop__every_place_occurs_as_often() -> None:
    torch.manual_seed(0)
    # Without black pixels of its own, an image is found at one place only.
    image = make_images(1, n_channels=1, height=6, width=6).clamp(min=1)
    cropped = RandomCrop(6, padding=2)(image.repeat(50 * 25, 1, 1, 1))
    padded = vision.pad(image[0], [2] * 4)
    windows = [vision.crop(padded, top, left, 6, 6) for top in range(5) for left in range(5)]
    found = (cropped[:, None] == torch.stack(windows)[None]).all(dim=(2, 3, 4))
    assert found.sum(dim=1).tolist() == [1] * len(cropped)
    counts = found.sum(dim=0)
    # 50 are expected at each place, with a standard deviation of 7.
    assert counts.min() > 20
    assert counts.max() < 85


def test_random_crop__places_differ_between_images_and_draws() -> None:
    torch.manual_seed(0)
    images = make_images(64)
    crop = RandomCrop(12, padding=3)
    first, second = crop(images), crop(images)
    found = {tuple(places(image, window, 3)) for image, window in zip(images, first, strict=True)}
    assert len(found) > 20
    assert not torch.equal(first, second)


def test_random_crop__cuts_rectangles_without_padding() -> None:
    torch.manual_seed(0)
    images = make_images(30, height=9, width=15)
    cropped = RandomCrop(7)(images)
    assert cropped.shape == (30, 3, 7, 7)
    assert all(places(image, window, 0) for image, window in zip(images, cropped, strict=True))


def test_random_flip__mirrors_half_of_the_images() -> None:
    torch.manual_seed(0)
    images = make_images(1000)
    flipped = RandomFlip()(images)
    mirrored = (flipped == vision.horizontal_flip(images)).all(dim=(1, 2, 3))
    kept = (flipped == images).all(dim=(1, 2, 3))
    assert bool((mirrored ^ kept).all())
    assert 420 < int(mirrored.sum()) < 580


def test_random_transforms__repeat_with_the_global_generator_alone() -> None:
    images = make_images(32)
    for transform in (RandomCrop(12, padding=4), RandomFlip()):
        torch.manual_seed(3)
        first = transform(images)
        np.random.seed(1)  # noqa: NPY002  # a generator that must not matter
        torch.manual_seed(3)
        assert torch.equal(transform(images), first)
        assert not torch.equal(transform(images), first)


@pytest.mark.parametrize("size", [5, 12, 32])
def test_resize__equals_torchvision_image_by_image(size: int) -> None:
    images = make_images(6)
    expected = [vision.resize(image, [size, size], antialias=True) for image in images]
    assert torch.equal(Resize(size)(images), torch.stack(expected))


def test_resize__leaves_images_of_that_size() -> None:
    images = make_images(6)
    assert Resize(12)(images) is images


def test_resize__refuses_a_resolution_below_one() -> None:
    with pytest.raises(ConfigError, match="resolution 0"):
        Resize(0)


def test_to_rgb__repeats_grey_and_leaves_rgb() -> None:
    grey = make_images(4, n_channels=1)
    assert torch.equal(ToRGB()(grey), torch.cat([grey, grey, grey], dim=1))
    rgb = make_images(4)
    assert torch.equal(ToRGB()(rgb), rgb)


def test_normalize__equals_torchvision() -> None:
    images = make_images(8)
    before = images.clone()
    normalized = Normalize(CIFAR_MEAN, CIFAR_STD)(images)
    expected = vision.normalize(
        vision.to_dtype(images, torch.float32, scale=True), list(CIFAR_MEAN), list(CIFAR_STD)
    )
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(normalized, expected, rtol=0, atol=1e-6)
    assert torch.equal(images, before)


def test_normalize__leaves_float_input_unchanged() -> None:
    images = make_images(2).float()
    before = images.clone()
    Normalize(CIFAR_MEAN, CIFAR_STD)(images)
    assert torch.equal(images, before)
