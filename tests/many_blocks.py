"""A run of a vision transformer of 24 blocks, about a hundred layers, with hand-made numbers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from satstore.config.experiment import RECORDED, ExperimentConfig
from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.runs.logs_folder import make_run
from satstore.runs.manifest import DatasetRecord, LayerRecord, Manifest, ProbesRecord, StageRecord
from satstore.runs.run import Run
from satstore.storage.zarr import AnalysisStore

PARTS = {"attn": "Attention", "norm2": "LayerNorm", "mlp": "Mlp", "": "Block"}
"""Part of each block to its class, in forward order; the last is the block itself."""

MODES = "mean", "cls", "last"
N_FEATURES = 16


def describe_vit(n_blocks: int = 24) -> list[LayerRecord]:
    """Return the layers of a vision transformer: its patches, the parts of blocks, norm and pooled vector."""

    def describe(layer: str, kind: str, form: str = "tokens", block: str = "") -> LayerRecord:
        shape = {"map": [N_FEATURES, 2, 2], "tokens": [5, N_FEATURES], "vector": [N_FEATURES]}[form]
        sizes = {"n_features": N_FEATURES, "output_shape": shape}
        return LayerRecord(layer=layer, index=0, kind=kind, form=form, block=block, **sizes)

    records = [describe("patch_embed.proj", "Conv2d", "map")]
    for block in [f"blocks.{number}" for number in range(n_blocks)]:
        records += [
            describe(f"{block}.{part}".rstrip("."), kind, block=block) for part, kind in PARTS.items()
        ]
    records += [describe("norm", "LayerNorm"), describe("fc_norm", "LayerNorm", "vector")]
    return [record.model_copy(update={"index": index}) for index, record in enumerate(records)]


def make_vit(
    logs: Path, modes: Sequence[str] = MODES, *, n_blocks: int = 24, has_spectra: bool = False
) -> Run:
    """Make a run with saturation and a table of probes of each mode; with spectra, it takes seconds."""
    config = ExperimentConfig(model="TinyViT", dataset=RECORDED, resolution=8, epoch=1)
    run = make_run(logs, "vit", config)
    records = describe_vit(n_blocks)
    layers = [record.layer for record in records]
    dimension = 3 + (5 * np.arange(len(layers))) % 11
    tables = {ProbeKey(LatentsKey(mode)): fit(records, n, mode) for n, mode in enumerate(modes)}

    def change(manifest: Manifest) -> None:
        manifest.layers = records
        manifest.dataset = DatasetRecord(
            name=RECORDED, n_train=600, n_eval=5000, classes=[*"0123456789"], fingerprint="a"
        )
        for stage in ("train", "saturation", "probe"):
            manifest.stages[stage] = StageRecord(status="done", started=1.0, ended=2.0)
        summary = manifest.summary
        summary.epochs_done, summary.test_accuracy = 1, 0.875
        summary.intrinsic_dimension = dict(zip(layers, dimension.tolist(), strict=True))
        summary.saturation = dict(zip(layers, (dimension / N_FEATURES).tolist(), strict=True))
        manifest.probes = {key: ProbesRecord(C=1, tol=1e-4, max_iter=9) for key in tables}
        summary.probe_accuracy = {
            key: dict(zip(table["layer"], table["eval_accuracy"], strict=True))
            for key, table in tables.items()
        }

    run.commit({key.file: table.to_csv(index=False).encode() for key, table in tables.items()}, change)
    if has_spectra:
        # Of each layer, the first eigenvalues are equal, and hold the variance: so many reach any delta.
        places = np.arange(N_FEATURES)
        spectra = {layer: (places < n).astype(float) for layer, n in zip(layers, dimension, strict=True)}
        with run.lock():
            for split in ("train", "eval"):
                AnalysisStore(run.analysis_path, run.commits).write_spectra(split, 0, 1, spectra)
    return Run(run.path)


def fit(records: Sequence[LayerRecord], number: int, mode: str) -> pd.DataFrame:
    """Return a table of probes: of poolings for maps, of token modes for tokens, of both for vectors."""
    forms = ["map", "vector"] if mode.isdecimal() else ["tokens", "vector"]
    here = np.array([record.index for record in records if record.form in forms])
    accuracy = 0.9 - 0.3 * np.exp(-here / 30) - 0.04 * number - 0.03 * (here % len(PARTS))
    columns = {"layer": [records[i].layer for i in here], "index": here, "eval_accuracy": accuracy}
    return pd.DataFrame(columns).assign(converged=True)
