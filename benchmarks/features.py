"""Real features to measure probes on: pairs of handwritten digits through a small trained conv net.

    python benchmarks/features.py [--rows 20000] [--folder tmp/benchmarks]

A class is an ordered pair of scikit-learn's digits, plain or inverted: 200 classes. The net is trained for
one epoch on 4,000 pairs of the training digits, so that a probe of its features has something to do (90 % on
the evaluation pairs); the features are the output of its last conv, before norm
and activation, pooled to 4 x 4: 4,096 of them, as satstore's extract would store them. Evaluation pairs are
of digits that training never saw.
"""

import argparse
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from tiny_digits import split_digits
from torch import Tensor, nn
from torch.nn import functional

from satstore.config.latent_keys import LatentsKey
from satstore.storage.commit_log import CommitLog
from satstore.storage.files import FORMAT_VERSION
from satstore.storage.location import Folder
from satstore.storage.zarr import LatentWriter, choose_shard_rows

N_CLASSES = 200
LAYER = "8"
"""The name of the recorded conv, as PyTorch counts it."""


def digit_pairs(n: int, *, split: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs of digits: uint8 images (n, 8, 16) and labels (n,), every class as often as the others."""
    digits = load_digits().images
    by_digit = split_digits()[split != "train"]
    random = np.random.default_rng([seed, split == "train"])
    labels = random.permutation(np.arange(n) % N_CLASSES)
    images = np.empty((n, 8, 16), np.uint8)
    for label in range(N_CLASSES):
        rows = np.flatnonzero(labels == label)
        left, right = divmod(label // 2, 10)
        for digit, columns in ((left, slice(0, 8)), (right, slice(8, 16))):
            drawn = random.choice(by_digit[digit], len(rows))
            images[rows, :, columns] = (digits[drawn] * 15.9375).astype(np.uint8)
        if label % 2:
            images[rows] = 255 - images[rows]
    return images, labels


def make_net() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 256, 3, padding=1), nn.BatchNorm2d(256), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(1024, N_CLASSES)),
    )


def as_input(images: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(images)[:, None].float() / 127.5 - 1
    return functional.interpolate(pixels, (32, 32))


def train_net(folder: Path, epochs: int = 1) -> nn.Sequential:
    """Train the net, or load the one that was trained before."""
    net, path = make_net(), folder / "net.pt"
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    torch.manual_seed(0)
    images, labels = digit_pairs(4_000, split="train")
    targets = torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(128):
            optimizer.zero_grad()
            functional.cross_entropy(net(as_input(images[batch.numpy()])), targets[batch]).backward()
            optimizer.step()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), path)
    return net.eval()


def compute_features(net: nn.Sequential, images: np.ndarray, rows: int = 512) -> Iterator[np.ndarray]:
    """Yield the recorded conv's output, float32 (rows, 256, 4, 4), batch by batch."""
    with torch.inference_mode():
        for start in range(0, len(images), rows):
            maps = net[: int(LAYER) + 1](as_input(images[start : start + rows]))
            yield functional.adaptive_avg_pool2d(maps, 4).numpy()


def make_store(folder: Path, rows: int) -> Path:
    """Write a store of the features of so many training rows, and a tenth of them for evaluation, once."""
    path = folder / f"features{rows}" / "latents.zarr"
    if (path / "done").exists():
        return path
    net = train_net(folder)
    for split, n in (("train", rows), ("eval", rows // 10)):
        images, labels = digit_pairs(n, split=split)
        write_features(path, split, compute_features(net, images), labels)
    (path / "done").touch()
    return path


def write_features(
    path: Path, split: str, parts: Iterable[np.ndarray], labels: np.ndarray, mantissa_bits: int = 10
) -> None:
    """Write features, that come part by part, as satstore's extract does."""
    shapes = {LatentsKey("4"): {LAYER: (256, 4, 4)}}
    attributes = {
        "format_version": FORMAT_VERSION,
        "layers": [LAYER],
        "classes": list(map(str, range(N_CLASSES))),
    }
    with LatentWriter(
        Folder(path),
        CommitLog(path.parent / "commits.jsonl"),
        attributes=attributes,
        source={"checkpoint_sha256": "benchmark"},
        shapes=shapes,
        split=split,
        labels=labels,
        sample_ids=np.arange(len(labels)),
        shard_rows=choose_shard_rows(shapes, len(labels), 2**28),
        mantissa_bits=mantissa_bits,
    ) as writer:
        start = 0
        for part in parts:
            writer.append({LatentsKey("4"): {LAYER: part}}, start)
            start += len(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000, help="training rows")
    parser.add_argument("--folder", type=Path, default=Path("tmp/benchmarks"))
    options = parser.parse_args()
    started = time.perf_counter()
    print(make_store(options.folder, options.rows), f"{time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
