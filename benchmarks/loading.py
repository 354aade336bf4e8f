"""Images per second of a loader, beside torchvision's classic pipeline in a DataLoader.

    python benchmarks/loading.py [--images 50000] [--batch 64] [--rounds 5] [--workers 0 2] [--json]

Both read scikit-learn's digits, enlarged to Cifar10's size and in its format, and crop, flip and normalise
them; the classic pipeline is RandomCrop, RandomHorizontalFlip, ToTensor and Normalize on one PIL image at a
time. The two take turns with the same number of worker processes; medians are given, and the median of the
ratios. A round begins with the first batch, once workers are there. torch has one thread, as the classic
pipeline and a loader's workers do; others would wait for each other on a busy machine.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from satstore.datasets.image_data import ImageSplit, PixelSource
from satstore.datasets.loaders import make_loader
from satstore.datasets.transforms import CIFAR_MEAN, CIFAR_STD, Normalize, RandomCrop, RandomFlip, Resize


class Classic(Dataset[tuple[torch.Tensor, int]]):
    """Cifar10 as torchvision reads it: an image at a time, through PIL."""

    def __init__(self, pixels: np.ndarray, labels: list[int]) -> None:
        self.pixels, self.labels = pixels, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(CIFAR_MEAN, CIFAR_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def make_images(n_images: int) -> tuple[np.ndarray, list[int]]:
    """Return digits as (n, 32, 32, 3) uint8, repeated up to some number, and their labels."""
    bunch = load_digits()
    small = torch.from_numpy((bunch.images * 15.9).astype(np.uint8))[:, None]
    large = torch.nn.functional.interpolate(small, size=32).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    places = np.arange(n_images) % len(large)
    return large.numpy()[places], bunch.target[places].tolist()


def measure(options: argparse.Namespace, workers: int) -> dict[str, float]:
    pixels, labels = make_images(options.images)
    steps = (RandomCrop(32, padding=4), RandomFlip(), Resize(32), Normalize(CIFAR_MEAN, CIFAR_STD))
    split = ImageSplit(PixelSource(torch.from_numpy(pixels).permute(0, 3, 1, 2)), labels, transforms=steps)
    classic = Classic(pixels, labels)
    rates: dict[str, list[float]] = {"satstore": [], "classic": []}
    for _ in range(options.rounds):
        loaders: dict[str, Any] = {
            "satstore": make_loader(split, options.batch, shuffle=True, workers=workers),
            "classic": DataLoader(
                classic,
                options.batch,
                shuffle=True,
                num_workers=workers,
                multiprocessing_context="forkserver" if workers else None,
            ),
        }
        for name, loader in loaders.items():
            rates[name].append(rate(iter(loader), options))
    ratios = [ours / theirs for ours, theirs in zip(rates["satstore"], rates["classic"], strict=True)]
    return {name: statistics.median(found) for name, found in rates.items()} | {
        "ratio": statistics.median(ratios)
    }


def rate(batches: Iterator[Any], options: argparse.Namespace) -> float:
    next(batches)
    started, n_images = time.perf_counter(), 0
    for images, _ in batches:
        n_images += len(images)
    return n_images / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50000, help="images of an epoch")
    parser.add_argument("--batch", type=int, default=64, help="images per batch")
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="worker processes of both")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {workers: measure(options, workers) for workers in options.workers}
    if options.json:
        print(json.dumps(vars(options) | {"results": figures}))
        return
    print(f"{options.images} images of 32 px, batches of {options.batch}")
    for workers, row in figures.items():
        print(
            f"{workers} workers   satstore {row['satstore']:9,.0f} images/s   "
            f"classic {row['classic']:9,.0f} images/s   {row['ratio']:.1f} times"
        )


if __name__ == "__main__":
    main()
