"""Latents that are large beside what makes them: a conv of many maps, over images made on the fly."""

import os
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from satstore.registry import DATASETS, MODELS

SIZE = 64
CHANNELS = 64
IMAGE_BYTES = 2 * CHANNELS * SIZE**2
"""Of the full latents of one image, as float16."""


class WideNet(nn.Sequential):
    """One conv of 64 maps at full size, and a linear layer on their means."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(3, CHANNELS, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, num_classes)
        )


class Stripes(Dataset[tuple[torch.Tensor, int]]):
    """Stripes that tell the class, at a height of their own in every image."""

    transform = None

    def __init__(self, n: int) -> None:
        self.targets = (np.arange(n) % 3).tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.zeros(3, SIZE, SIZE)
        image[self.targets[index], index % SIZE] = 1 + index % 7
        return image, self.targets[index]


@DATASETS.register("WideImages", description="stripes, as many as WIDE_IMAGES says")
def wide_images(output_size: int, batch_size: int, **_: object) -> Any:
    """Return loaders of so many images, and a tenth of them."""
    n = int(os.environ.get("WIDE_IMAGES", "100"))
    train, test = Stripes(n), Stripes(n // 10)
    return DataLoader(train, batch_size), DataLoader(test, batch_size), (output_size, output_size), 3


MODELS.register("WideNet", description="one wide conv")(WideNet)
