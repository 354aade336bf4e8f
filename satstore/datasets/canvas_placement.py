"""Place small images on a larger canvas, at random."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from satstore.datasets.image_data import ImageData, ImageSource, ImageSplit, Update, fingerprint
from satstore.datasets.transforms import RandomFlip, Transform
from satstore.errors import ConfigError

Canvas = Literal["black", "noise"]


def check_room(name: str, image_px: int, canvas_px: int) -> None:
    """Refuse a canvas that is smaller than the images."""
    if canvas_px < image_px:
        raise ConfigError(
            f"resolution {canvas_px} can't be used with {name}: its images of {image_px} px are placed on a "
            f"canvas of that size, unscaled; give {image_px} or more"
        )


def paste(images: Tensor, tops: Tensor, lefts: Tensor, canvases: Tensor) -> Tensor:
    """Paste each image (B, C, h, w) onto its canvas (B, C, H, W), in place; return the canvases."""
    height, width = images.shape[2:]
    for canvas, image, top, left in zip(canvases, images, tops.tolist(), lefts.tolist(), strict=True):
        canvas[:, top : top + height, left : left + width] = image
    return canvases


@dataclass(frozen=True)
class RandomPlacement:
    """Place each image on a canvas, at a new random position each time; all positions are equally likely.

    Attributes
    ----------
    canvas
        Black, or noise: every value drawn uniformly from 0..255.
    """

    size: int
    canvas: Canvas = "black"

    def __call__(self, images: Tensor) -> Tensor:
        """Transform a batch."""
        n_images, n_channels, height, width = images.shape
        tops = torch.randint(self.size - height + 1, (n_images,))
        lefts = torch.randint(self.size - width + 1, (n_images,))
        shape = (n_images, n_channels, self.size, self.size)
        noise = self.canvas == "noise"
        blank = torch.randint(256, shape, dtype=torch.uint8) if noise else images.new_zeros(shape)
        return paste(images, tops, lefts, blank)


class PlacedSource:
    """Images on canvases, at positions drawn once by the seed and the image's index."""

    def __init__(self, source: ImageSource, size: int, canvas: Canvas, seed: int) -> None:
        self.source, self.size, self.canvas, self.seed = source, size, canvas, seed
        self.in_memory = source.in_memory
        height, width = source.read([0]).shape[2:]
        generator = torch.Generator().manual_seed(seed)
        self.tops = torch.randint(size - height + 1, (len(source),), generator=generator)
        self.lefts = torch.randint(size - width + 1, (len(source),), generator=generator)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return the placed images at some indices, uint8 (B, C, size, size), in their order."""
        images, places = self.source.read(indices), torch.as_tensor(indices, dtype=torch.int64)
        shape = (images.shape[1], self.size, self.size)
        if self.canvas == "noise":
            canvases = torch.stack([self._noise(index, shape) for index in places.tolist()])
        else:
            canvases = images.new_zeros((len(images), *shape))
        return paste(images, self.tops[places], self.lefts[places], canvases)

    def identify(self, update: Update) -> None:
        """Feed a digest with what identifies the images; positions follow from config and seed."""
        self.source.identify(update)

    def _noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed << 32) + index & (1 << 63) - 1)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def place_randomly(
    name: str,
    classes: Sequence[str],
    train: ImageSplit,
    evaluation: ImageSplit,
    *,
    resolution: int,
    canvas: Canvas,
    seed: int,
    preparation: Sequence[Transform],
    augment: bool,
) -> ImageData:
    """Put together a dataset of images at random positions of a canvas.

    Training images are placed anew every time, unless ``augment`` is off; evaluation images, and training
    images for latents, keep the positions that the seed gives them. Training images are flipped at random
    once they are placed; ``preparation`` is applied to all.
    """
    check_room(name, train.source.read([0]).shape[-1], resolution)
    plain, held_out = (
        ImageSplit(PlacedSource(s.source, resolution, canvas, seed + k), s.labels, s.sample_ids, preparation)
        for k, s in enumerate((train, evaluation))
    )
    moving: tuple[Transform, ...] = (RandomPlacement(resolution, canvas), RandomFlip(), *preparation)
    return ImageData(
        name=name,
        classes=tuple(classes),
        train=train.transformed(moving) if augment else plain,
        train_plain=plain,
        eval=held_out,
        fingerprint=fingerprint(classes, train, evaluation),
        in_memory=train.source.in_memory,
    )
