"""Inputs of models of images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from satstore.errors import ConfigError


@dataclass(frozen=True)
class PrepareImage:
    """Prepares a PIL image by a library's own transform, in the colours that the model takes."""

    source: str
    transform: Callable[[Image.Image], Any]
    mode: str = "RGB"

    def __call__(self, image: Any) -> Any:
        """Return an input of the model."""
        if not isinstance(image, Image.Image):
            raise ConfigError(f"{self.source} takes images, and was given a {type(image).__name__}")
        return self.transform(image.convert(self.mode))


def scale_pixels(image: Image.Image) -> Tensor:
    """Return an image's pixels in 0..1, float32 (C, H, W)."""
    pixels: Tensor = to_tensor(image)
    return pixels


def in_one_line(recipe: object) -> str:
    """Return a transform's own description in one line."""
    return " ".join(str(recipe).split())
