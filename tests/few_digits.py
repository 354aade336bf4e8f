"""A thousand of scikit-learn's digits: of real images, as few as training, shards and probes can do with."""

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset

from satstore.registry import DATASETS

N_TRAIN, N_EVAL = 800, 200


class Digits(Dataset[tuple[torch.Tensor, int]]):
    """Some of the digits, of 8 px, enlarged."""

    transform = None

    def __init__(self, start: int, stop: int, size: int) -> None:
        images, labels = load_digits(return_X_y=True)
        pixels = np.kron(images[start:stop].reshape(-1, 1, 8, 8) / 16, np.ones((3, size // 8, size // 8)))
        self.data = torch.from_numpy(pixels.astype(np.float32))
        self.targets = labels[start:stop].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.data[index], self.targets[index]


def few_digits(output_size: int, batch_size: int, **_: object) -> Any:
    """Return loaders of 800 and 200 images of ten classes."""
    train, test = (Digits(*span, output_size) for span in ((0, N_TRAIN), (N_TRAIN, N_TRAIN + N_EVAL)))
    return DataLoader(train, batch_size), DataLoader(test, batch_size), (output_size, output_size), 10


if "FewDigits" not in DATASETS:
    DATASETS.register("FewDigits", description="a thousand digits")(few_digits)
