"""The smallest experiment that has all of it: training, latents, probes; a fraction of a second."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from satstore.registry import DATASETS, MODELS
from satstore.runs.run import Run
from satstore.stages.pipeline import run_experiments
from satstore.storage.files import Digest
from satstore.storage.zarr import AnalysisStore, open_latents
from satstore.training.checkpoint import read_checkpoint

CONFIG: dict[str, Any] = {
    "model": "TinyNet",
    "dataset": "TinyImages",
    "resolution": 8,
    "epoch": 2,
    "batch_size": 16,
    "optimizer": "adam",
    "device": "cpu",
    "pooling": ["2"],
    "stages": ["train", "extract", "saturation", "probe"],
}


class TinyNet(nn.Sequential):
    """A conv and a linear layer, with dropout: something that draws random numbers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(16, num_classes),
        )


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Noise with bright rows that tell the class."""

    transform = None

    def __init__(self, n: int, size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.targets = (np.arange(n) % 3).tolist()
        self.data = rng.normal(size=(n, 3, size, size)).astype(np.float32)
        for image, label in zip(self.data, self.targets, strict=True):
            image[label, : size // 2] += 1

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.data[index]), self.targets[index]


def tiny_images(output_size: int, batch_size: int, **_: object) -> Any:
    """Return loaders of 40 and 20 images of three classes."""
    train, test = Images(40, output_size, 0), Images(20, output_size, 1)
    return DataLoader(train, batch_size), DataLoader(test, batch_size), (output_size, output_size), 3


def register() -> None:
    """Make model and dataset known, once."""
    if "TinyNet" not in MODELS:
        MODELS.register("TinyNet", description="tiny")(TinyNet)
    if "TinyImages" not in DATASETS:
        DATASETS.register("TinyImages", description="tiny")(tiny_images)


register()


def run_tiny(logs: Path, **changes: Any) -> Run:
    """Run, or go on with, all stages of the tiny experiment."""
    [run] = run_experiments({**CONFIG, **changes}, "res", logs_dir=logs)
    run.reload()
    return run


VOLATILE = ("duration_s", "peak_memory_bytes")
"""Columns that differ between any two runs."""


def canonical(value: Any) -> str:
    """Write down a checkpoint's content: of the same, torch makes other bytes once it was loaded."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {canonical(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(canonical, value))}]"
    return Digest.of(value.numpy().tobytes()).sha256 if isinstance(value, torch.Tensor) else repr(value)


def results(run: Run) -> dict[str, Any]:
    """Return everything that a run found, free of times: for comparing two runs bit by bit."""
    found: dict[str, Any] = {}
    for name in sorted(run.manifest.files):
        content = run.read_file(name)
        if name.endswith(".csv"):
            table = run.table(name.removesuffix(".csv")).drop(columns=list(VOLATILE), errors="ignore")
            found[name] = table.to_csv(index=False)
        elif name.startswith("checkpoint"):
            found[name] = canonical(read_checkpoint(run))
        elif name != "config.json":
            found[name] = Digest.of(content).sha256
    for split in ("train", "eval"):
        for layer, spectrum in run.spectra(split).items():
            found[f"spectra/{split}/{layer}"] = spectrum.tobytes()
            mean, covariance = AnalysisStore(run.analysis_path).moments(split, layer)
            found[f"moments/{split}/{layer}"] = mean.tobytes() + covariance.tobytes()
        for key in run.manifest.latents:
            latents = run.latents(key.group, split, key.epoch)
            found[f"ids/{key}/{split}"] = latents.labels.tobytes() + latents.sample_ids.tobytes()
            for layer in latents:
                parts = latents[layer].numpy(), latents[layer].mean, latents[layer].std
                found[f"latents/{key}/{split}/{layer}"] = [part.tobytes() for part in parts]
    for table in run.manifest.probes:
        for layer in run.manifest.probes[table].layers:
            arrays = AnalysisStore(run.analysis_path).probe(str(table), layer)
            found[f"probe/{table}/{layer}"] = {name: values.tobytes() for name, values in arrays.items()}
    found["attributes"] = json.dumps(open_latents(run.latents_path).attributes, sort_keys=True)
    found["summary"] = run.manifest.summary.model_dump()
    found["statuses"] = run.statuses()
    return found
