"""Logs and latents as phd-lab writes them, made by hand in its own layout, quirks included."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch

from satstore.models.build import build_model

STEM = "VGG5-Digits-r32-bs128-e2"
LAYERS = {"features-0": 64, "classifier-2": 32, "classifier-6": 10}


def write_tree(root: Path, **changes: Any) -> Path:
    """Write the logs of one experiment, as phd-lab does: tables with an index, accuracies in percent."""
    folder = root / "VGG5" / "Digits_32" / "MyRun"
    folder.mkdir(parents=True)
    columns: dict[str, list[float]] = {
        "training_accuracy": [60.0, 80.0],
        "training_top5-accuracy": [90.0, 95.0],
        "training_loss": [1.2, 0.6],
        "test_accuracy": [55.5, 77.5],
        "test_loss": [1.3, 0.7],
    }
    for split in ("train", "eval"):
        for number, (layer, n) in enumerate(LAYERS.items()):
            dimension = [number + 3, number + 4]
            columns[f"{split}-saturation_{layer}"] = [d / n for d in dimension]
            columns[f"{split}-intrinsic-dimensionality_{layer}"] = [float(d) for d in dimension]
    columns |= changes.get("columns", {})
    pd.DataFrame(columns).to_csv(folder / f"{STEM}.csv", sep=";")
    config = {"model": "vgg5", "dataset": "Digits", "resolution": 32, "batch_size": 128, "epoch": 2}
    config |= {
        "optimizer": "lrs",
        "metrics": ["Accuracy"],
        "delta": 0.99,
        "device": "cuda:0",
        "logs_dir": "./logs",
    }
    (folder / f"{STEM}_config.json").write_text(json.dumps(config | {"strange": 1}))
    probes = {
        "name": [f"train-{layer}" for layer in reversed(LAYERS)],
        "train_acc": [0.99, 0.9, 0.8],
        "eval_acc": [0.97, 0.85, 0.7],
    }
    pd.DataFrame(probes).to_csv(folder / "probe_performances.csv", sep=";")
    pd.DataFrame(probes).to_csv(folder / "2x2_probe_performance.csv", sep=";")
    fields = {
        "Layer": ["1-Conv2d"],
        "map_size": [32],
        "start": [0.5],
        "jump": [1.0],
        "receptive_field": [3.0],
    }
    pd.DataFrame(fields).to_csv(folder / "receptive_field_VGG5_Digits_32.csv", sep=";")
    projections = {
        "dataset": ["Digits_32", "Digits_32", "Cifar10_32"],
        "loss": [2.0, 0.7, 1.0],
        "model": ["VGG5"] * 3,
        "accs": [20.0, 77.5, 1.0],
        "thresh": [0.9, 3.0, 0.9],
    }
    pd.DataFrame(projections).to_csv(root / "projections_MyRun.csv", sep=";")
    model = build_model("vgg5", 10, 32)
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    content = {"model_state_dict": state, "optimizer": {}, "scheduler": None, "epoch": 1}
    content["test_accuracy"] = np.float64(77.5)
    torch.save(content, folder / f"{STEM}.pt")
    return folder


SHAPES = {"features-0": (64, 2, 2), "classifier-2": (32,), "classifier-6": (10,)}
N_IMAGES = {"train": 50, "eval": 20}


def write_latents(
    folder: Path, logs: str, batch: int = 16, means: Mapping[str, float] = MappingProxyType({})
) -> dict[str, Any]:
    """Write a folder of latents as phd-lab does: flattened batches, one pickle after the other.

    Layers may have a mean that is added to all of their values.
    """
    folder.mkdir(parents=True)
    (folder / "model_pointer.txt").write_text(logs)
    rng, written = np.random.default_rng(0), {}
    for split, n_images in N_IMAGES.items():
        labels = rng.integers(0, 10, n_images)
        (folder / f"{split}-labels.p").write_bytes(pickle.dumps(labels))
        written[split, "labels"] = labels
        for layer, shape in SHAPES.items():
            values = rng.normal(size=(n_images, *shape)).astype(np.float32) + labels.reshape(
                -1, *[1] * len(shape)
            )
            written[split, layer] = (values + means.get(layer, 0)).astype(np.float32)
            with (folder / f"{split}-{layer}.p").open("wb") as file:
                for start in range(0, n_images, batch):
                    pickle.dump(
                        written[split, layer][start : start + batch].reshape(-1, np.prod(shape)), file
                    )
    return written
