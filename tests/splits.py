"""Splits of latents in memory, written to a store: whole, in part, or as a killed process leaves them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satstore.config.latent_keys import LatentsKey
from satstore.storage.commit_log import CommitLog
from satstore.storage.location import Folder
from satstore.storage.zarr import LatentWriter

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "pool2": {"layer1.0.conv1": (3, 2, 2), "conv0": (4, 2, 2), "fc": (5,)},
    "full": {"layer1.0.conv1": (3, 6, 5), "conv0": (4, 7, 7), "fc": (5,)},
}
LAYERS = ["layer1.0.conv1", "conv0", "fc"]
"""In forward order, which is no order of their names."""

CLASSES = ["cat", "dog", "eel"]
SOURCE = {"checkpoint_sha256": "0" * 64}
ATTRIBUTES = {
    "format_version": 1,
    "run_id": "run",
    "experiment": "e",
    "config": {"model": "x", "pooling": ["2", "full"]},
    "layers": LAYERS,
    "classes": CLASSES,
}

Latents = dict[str, dict[str, NDArray[np.float32]]]


def make_values(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draw values whose signs alternate, so that any two rows have a range for which float16 will do."""
    values = np.abs(generator.normal(3, 20, shape)).astype(np.float32)
    values[1::2] *= -1
    return values


class Split:
    """A split's latents in memory, and ways to write them."""

    def __init__(self, n_samples: int, shapes: Any = SHAPES, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.n_samples = n_samples
        self.shapes: dict[str, dict[str, tuple[int, ...]]] = shapes
        self.latents: Latents = {
            pooling: {layer: make_values(generator, (n_samples, *shape)) for layer, shape in layers.items()}
            for pooling, layers in shapes.items()
        }
        self.labels = generator.integers(0, len(CLASSES), n_samples)
        self.sample_ids = generator.permutation(10 * n_samples)[:n_samples]

    def open(
        self,
        root: Path,
        split: str = "train",
        shard_rows: int = 8,
        source: Mapping[str, str] = SOURCE,
        attributes: Mapping[str, Any] = ATTRIBUTES,
        **options: Any,
    ) -> LatentWriter:
        root.parent.mkdir(parents=True, exist_ok=True)
        return LatentWriter(
            Folder(root),
            log_of(root),
            attributes=attributes,
            source=source,
            shapes={LatentsKey.parse(pooling): layers for pooling, layers in self.shapes.items()},
            split=split,
            labels=self.labels,
            sample_ids=self.sample_ids,
            shard_rows=shard_rows,
            **options,
        )

    def append(self, writer: LatentWriter, start: int, stop: int) -> None:
        rows = slice(start, stop)
        batch = {
            LatentsKey.parse(pooling): {layer: values[rows] for layer, values in layers.items()}
            for pooling, layers in self.latents.items()
        }
        writer.append(batch, start)

    def write(self, root: Path, batch_size: int = 7, split: str = "train", **options: Any) -> LatentWriter:
        with self.open(root, split, **options) as writer:
            for first, stop in writer.missing:
                for start in range(first, stop, batch_size):
                    self.append(writer, start, min(start + batch_size, stop))
        return writer

    def stored(self, pooling: str, layer: str) -> NDArray[np.float16]:
        return self.latents[pooling][layer].astype(np.float16)


def log_of(root: Path) -> CommitLog:
    return CommitLog(root.parent / "commits.jsonl")


def check_whole(root: Path, pooling: str = "pool2", split: str = "train") -> None:
    log_of(root).read(root.name).check(Folder(root), f"{pooling}/{split}", "extract again")


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def interrupted(root: Path, data: Split, n_rows: int, **options: Any) -> LatentWriter:
    """Write some rows and drop the writer, as a killed process does."""
    writer = data.open(root, **options)
    for row in range(first_missing(writer), n_rows):
        data.append(writer, row, row + 1)
    writer.drain()
    return writer


def first_missing(writer: LatentWriter) -> int:
    """The rows before the first that is missing; all 29 are there if none is."""
    return writer.missing[0][0] if writer.missing else 29
