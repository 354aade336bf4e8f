"""Transforms of whole batches of images, uint8 (B, C, H, W) until :class:`Normalize` makes them float32.

One image at a time costs more in Python than in arithmetic, so every transform handles the batch at once.
What is random is drawn per image, from torch's global generator and nothing else: in a loader's worker the
DataLoader seeds that generator, in the main process a checkpoint holds it, so a resumed run repeats it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torchvision.transforms.v2.functional as vision
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2 import RandomResizedCrop as RandomCropOfOne

from satstore.errors import ConfigError

Transform = Callable[[Tensor], Tensor]

# The experiments use Cifar10's figures for MNIST too.
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def crop_each(images: Tensor, tops: Tensor, lefts: Tensor, size: int) -> Tensor:
    """Copy a square out of each image (B, C, H, W), from row tops (B,) and column lefts (B,) on."""
    # A view of every window, of which one per image is copied: 0.2 ms for 128 images of 32 px,
    # where indexing by rows and columns takes 1.0 ms and a loop over the images 0.6 ms.
    windows = images.unfold(2, size, 1).unfold(3, size, 1)
    return windows[torch.arange(len(images)), :, tops, lefts]


def flip_each(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the chosen images, a bool (B,), left to right."""
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


Padding = Literal["black", "edge", "reflect"]
"""The kind of padding: black, its outermost pixels, or its mirror image, repeated."""


def surround(images: Tensor, before: int, after: int, padding: Padding) -> Tensor:
    """Pad images (B, C, H, W) above and to the left, and below and to the right."""
    if padding == "black":
        return pad(images, (before, after, before, after))
    # NumPy pads the indices: it can mirror more than the image's width, which torch can't.
    for axis in (2, 3):
        places = np.pad(np.arange(images.shape[axis]), (before, after), mode=padding)
        images = images.index_select(axis, torch.from_numpy(places))
    return images


@dataclass(frozen=True)
class RandomCrop:
    """Pad each image and cut out a square window at a random position; every position is as likely."""

    size: int
    padding: int = 0
    mode: Padding = "black"

    def __call__(self, images: Tensor) -> Tensor:
        """Transform a batch."""
        padded = surround(images, self.padding, self.padding, self.mode)
        n_images, _, height, width = padded.shape
        tops = torch.randint(height - self.size + 1, (n_images,))
        lefts = torch.randint(width - self.size + 1, (n_images,))
        return crop_each(padded, tops, lefts, self.size)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut out a window of 8 to 100 % of each image's area and sides of 3:4 to 4:3; scale it to a square."""

    size: int

    def __call__(self, images: Tensor) -> Tensor:
        """Transform a batch."""
        crop = RandomCropOfOne(self.size, antialias=True)
        return torch.stack([crop(image) for image in images])


@dataclass(frozen=True)
class RandomFlip:
    """Mirror each image with a probability of one half, left to right, or, if ``vertical``, top to bottom."""

    vertical: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Transform a batch."""
        chosen = torch.rand(len(images)) < 0.5
        return flip_each(images.mT, chosen).mT if self.vertical else flip_each(images, chosen)


@dataclass(frozen=True)
class Border:
    """Centre the images on a canvas; an odd pixel is added below and to the right."""

    size: int
    mode: Padding = "black"

    def __call__(self, images: Tensor) -> Tensor:
        """Transform a batch."""
        room = self.size - images.shape[-1]
        return surround(images, room // 2, room - room // 2, self.mode)


@dataclass(frozen=True)
class CenterCrop:
    """Cut a square out of the middle of each image."""

    size: int

    def __call__(self, images: Tensor) -> Tensor:
        """Transform a batch."""
        cropped: Tensor = vision.center_crop(images, [self.size, self.size])
        return cropped


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast and saturation of each image by random factors from 1 ± ``strength``.

    The order of the three is drawn once per batch: one image at a time, with an order each, takes many times
    as long. Pixels stay in 0..255, as float32.
    """

    strength: float = 0.4

    def __call__(self, images: Tensor) -> Tensor:
        """Transform a batch."""
        images = images.to(torch.float32)
        factors = 1 + self.strength * (2 * torch.rand(3, len(images), 1, 1, 1) - 1)
        for change in torch.randperm(3).tolist():
            if change == 0:
                other: Tensor | float = 0.0
            else:
                grey = vision.rgb_to_grayscale(images)
                other = grey.mean((1, 2, 3), keepdim=True) if change == 1 else grey
            images = (other + (images - other) * factors[change]).clamp_(0, 255)
        return images


@dataclass(frozen=True)
class Lighting:
    """Add a colour to each image, drawn along the principal axes of ImageNet's colours.

    The axes are those of Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional
    neural networks", 2012, section 4.1.

    Attributes
    ----------
    std
        The standard deviation of the draws, in standard deviations along each axis.
    """

    std: float = 0.1

    def __call__(self, images: Tensor) -> Tensor:
        """Transform a batch with pixels in 0..255."""
        variances = torch.tensor([0.2175, 0.0188, 0.0045])
        axes = torch.tensor(
            [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
        )
        colours = (torch.randn(len(images), 3) * self.std * variances) @ axes.T
        return images.to(torch.float32) + 255 * colours[:, :, None, None]


@dataclass(frozen=True)
class Resize:
    """Scale the images to a square, bilinear and antialiased; images of that size are left as they are."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"resolution {self.size} can't be used; give the pixels of a side, at least 1")

    def __call__(self, images: Tensor) -> Tensor:
        """Transform a batch."""
        if images.shape[-2:] == (self.size, self.size):
            return images
        resized: Tensor = vision.resize(images, [self.size, self.size], antialias=True)
        return resized


@dataclass(frozen=True)
class ToRGB:
    """Repeat a grey channel three times; images of three channels are left as they are."""

    def __call__(self, images: Tensor) -> Tensor:
        """Transform a batch."""
        return images.expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class Normalize:
    """Turn 0..255 into float32 0..1, then standardise each channel by its mean and standard deviation."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Transform a batch."""
        std = torch.tensor(self.std)[:, None, None]
        mean = torch.tensor(self.mean)[:, None, None]
        # In place: at 224 px a second buffer of the batch costs three times the arithmetic.
        return images.to(torch.float32, copy=True).mul_(1 / (255 * std)).sub_(mean / std)
