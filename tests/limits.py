"""Stages in processes that can't take more memory than they are told, on stores many times as large."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from wide import IMAGE_BYTES

from satstore.config.experiment import ExperimentConfig
from satstore.config.latent_keys import LatentsKey
from satstore.runs.logs_folder import make_run
from satstore.runs.manifest import DatasetRecord, LatentsRecord, LayerRecord, Manifest
from satstore.storage.zarr import LatentWriter

MIB = 2**20
N_FEATURES = 4096
ROW_BYTES = 2 * N_FEATURES
"""Of one sample's latent, as float16."""
BLOCK = 4096
CLASSES = ["ant", "bee", "cat"]


def write_latents(folder: Path, n_bytes: int) -> Path:
    """Write a run of one layer with so many bytes of latents, and return its logs folder."""
    counts = {"train": -(-n_bytes // ROW_BYTES), "eval": 1200}
    run = make_run(folder / "logs", "res", ExperimentConfig(model="vgg7_S", dataset="Digits", epoch=1))
    run.commit({"checkpoint.pt": b"weights"})
    source = {"checkpoint_sha256": run.manifest.files["checkpoint.pt"].sha256}
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(len(CLASSES), N_FEATURES)).astype(np.float32)
    noise = rng.normal(0, 3, size=(2, BLOCK, N_FEATURES)).astype(np.float32)
    for split, n in counts.items():
        labels = np.arange(n) % len(CLASSES)
        with LatentWriter(
            run.latents_location,
            run.commits,
            attributes={"format_version": 1, "layers": ["fc"], "classes": CLASSES},
            source=source,
            shapes={LatentsKey("4"): {"fc": (N_FEATURES,)}},
            split=split,
            labels=labels,
            sample_ids=np.arange(n),
            shard_rows=2 * BLOCK,
        ) as writer:
            for start in range(0, n, BLOCK):
                codes = labels[start : start + BLOCK]
                values = centres[codes] + noise[start // BLOCK % 2][: len(codes)]
                writer.append({LatentsKey("4"): {"fc": values}}, start)

    def change(manifest: Manifest) -> None:
        manifest.summary.epochs_done = 1
        manifest.dataset = DatasetRecord(
            name="made", n_train=counts["train"], n_eval=counts["eval"], classes=CLASSES, fingerprint=""
        )
        manifest.layers = [
            LayerRecord(layer="fc", index=0, kind="Linear", n_features=N_FEATURES, output_shape=[N_FEATURES])
        ]
        manifest.latents[LatentsKey("4")] = LatentsRecord(
            **source, digest="d", size_bytes=1, n_train=counts["train"], n_eval=counts["eval"]
        )

    run.commit(change=change)
    return folder / "logs"


def run_within(data_bytes: int | None, words: list[str], **environment: str) -> None:
    """Run a command that can't have more data than so many bytes.

    Data are what a process takes for itself (RLIMIT_DATA), whether it touches it or not; files and libraries
    that are mapped don't count. What asks for more gets none, and fails.
    """

    def limit() -> None:
        if data_bytes is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "satstore", *words]
    done = subprocess.run(
        command, preexec_fn=limit, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr


PROBE_LIMIT = 400 * MIB
"""What a probe is told to keep to, and what it is given."""
EXTRACT_LIMIT, EXTRACT_DATA = 950 * MIB, 1200 * MIB
"""What extraction is told, and what it is given: torch takes more than it touches, for threads and caches."""


def probe_within(folder: Path, n_bytes: int, data_bytes: int = PROBE_LIMIT, n_iter: int = 100) -> None:
    """Fit a probe of so many bytes of latents within its limit."""
    logs = write_latents(folder, n_bytes)
    words = ["probe", "--run", "res", "--logs-dir", str(logs), "--memory-limit", f"{PROBE_LIMIT}B"]
    words += ["--max-iter", f"{n_iter}"]
    run_within(data_bytes, words)
    shutil.rmtree(folder)


def extract_within(folder: Path, n_bytes: int, data_bytes: int = EXTRACT_DATA) -> None:
    """Extract so many bytes of latents within its limit."""
    folder.mkdir(parents=True)
    config = {
        "plugins": ["wide"],
        "model": "WideNet",
        "dataset": "WideImages",
        "resolution": 64,
        "epoch": 1,
        "batch_size": 8,
        "workers": 0,
        "device": "cpu",
        "optimizer": "sgd",
        "layers": "^0$",
    }
    (folder / "wide.json").write_text(json.dumps(config))
    modules = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "PYTHONPATH": os.pathsep.join(modules),
        "WIDE_IMAGES": f"{-(-n_bytes // IMAGE_BYTES)}",
    }
    target = ["--config", f"{folder}/wide.json", "--run-id", "res", "--logs-dir", f"{folder}/logs"]
    run_within(None, ["train", *target, "--no-latents"], **environment)
    words = ["extract", *target, "-d", "full", "--memory-limit", f"{EXTRACT_LIMIT}B"]
    run_within(data_bytes, words, **environment)
    shutil.rmtree(folder)
