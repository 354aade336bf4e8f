"""The stage ``probe`` on small stores of made latents: what is fitted, kept, refused, and given back."""

import io
import json
import math
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pytest
import xarray as xr
import zarr
from command_line import HANGS_S, WORKS_S
from held import Held
from mortal import Mortal
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console
from threadpoolctl import threadpool_info, threadpool_limits

from satstore.analysis.logistic.evaluation import EvaluationQuery
from satstore.cli.layer_table import print_layers
from satstore.cli.show import summarize_layers
from satstore.config.experiment import ExperimentConfig
from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.errors import (
    ClusterError,
    ConfigError,
    CorruptError,
    DeviceError,
    LockedError,
    MemoryLimitError,
    NotFoundError,
    UnknownNameError,
)
from satstore.registry import STAGES
from satstore.reports.plots import plot_layers
from satstore.runs.logs_folder import make_run, open_run
from satstore.runs.manifest import (
    DatasetRecord,
    LatentsRecord,
    LayerRecord,
    Manifest,
    ProbesRecord,
)
from satstore.runs.run import Run
from satstore.stages.pipeline import make_tasks, run_stages
from satstore.stages.probe import fit as probe_fit
from satstore.stages.probe.backends import Backend
from satstore.stages.probe.dask_backend import join_cluster, start_cluster
from satstore.stages.probe.dask_engine import Cluster, DaskEngine, LatentSource
from satstore.stages.probe.job import ProbeJob, ProbeResult
from satstore.stages.probe.memory import MemoryPeaks
from satstore.stages.probe.table import commit_layer, discard_old_probes
from satstore.storage.zarr import AnalysisStore, LatentSplit, LatentWriter
from satstore.storage.zarr.durable_store import open_store
from satstore.system.memory import resident_bytes

CLASSES = ["ant", "bee", "cat"]
LAYERS = {"stem": (4, 2, 2), "block.0.conv": (6, 2, 2), "fc": (5,)}
"""Layer to the shape of a latent; in forward order, which is not the alphabet's."""
SIZES = {"train": 60, "eval": 30}
POOL4 = LatentsKey("4")
COLUMNS = [
    "layer",
    "n_features",
    "train_accuracy",
    "eval_accuracy",
    "top5",
    "train_loss",
    "objective",
    "n_iter",
    "converged",
    "duration_s",
    "peak_memory_bytes",
    "error",
]

Labels = Mapping[str, Sequence[int]]


def make_labels(n_classes: int = 3, **sizes: int) -> dict[str, list[int]]:
    return {split: [i % n_classes for i in range(n)] for split, n in (SIZES | sizes).items()}


def make_latents(labels: Sequence[int], shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Noise around a centre per class: what the classes share, a probe can't tell apart."""
    centres = np.random.default_rng(seed).normal(size=(99, *shape))
    noise = np.random.default_rng([seed, len(labels)]).normal(size=(len(labels), *shape))
    return (0.5 * centres[np.asarray(labels)] + noise).astype(np.float32)


def make_experiment(
    logs: Path,
    labels: Labels | None = None,
    layers: Mapping[str, tuple[int, ...]] = LAYERS,
    spoil: Mapping[str, Any] | None = None,
    plugins: tuple[str, ...] = (),
) -> Run:
    """An experiment that was trained and extracted, as far as its files tell."""
    labels = labels or make_labels()
    config = ExperimentConfig(model="vgg7_S", dataset="Digits", epoch=1, plugins=plugins)
    run = make_run(logs, "res", config)
    run.commit({"checkpoint.pt": b"weights"})
    source = {"checkpoint_sha256": run.manifest.files["checkpoint.pt"].sha256}
    attributes = {"format_version": 1, "layers": list(layers), "classes": CLASSES}
    for split, codes in labels.items():
        shapes = {POOL4: dict(layers)}
        latents = {
            layer: make_latents(codes, shape, seed) for seed, (layer, shape) in enumerate(layers.items())
        }
        for layer, value in (spoil or {}).items():
            latents[layer].reshape(len(codes), -1)[[3, 5], 0] = value
        with LatentWriter(
            run.latents_location,
            run.commits,
            attributes=attributes,
            source=source,
            shapes=shapes,
            split=split,
            labels=np.asarray(codes),
            sample_ids=np.arange(len(codes)),
            shard_rows=64,
        ) as writer:
            writer.append({POOL4: latents}, 0)

    def change(manifest: Manifest) -> None:
        n_train, n_eval = (len(labels[split]) for split in ("train", "eval"))
        manifest.summary.epochs_done = 1
        manifest.dataset = DatasetRecord(
            name="made", n_train=n_train, n_eval=n_eval, classes=CLASSES, fingerprint=""
        )
        manifest.layers = [
            LayerRecord(layer=layer, index=i, kind="Conv2d", n_features=shape[0], output_shape=list(shape))
            for i, (layer, shape) in enumerate(layers.items())
        ]
        manifest.latents[POOL4] = LatentsRecord(
            **source, digest="d", size_bytes=1, n_train=n_train, n_eval=n_eval
        )

    run.commit(change=change)
    return Run(run.path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs folder of an experiment, made once."""
    return make_experiment(tmp_path_factory.mktemp("made")).path.parents[1]


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    """A copy of it, for one test."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return open_run("res", tmp_path)


def start(run: Run, **parameters: Any) -> Run:
    """Run the stage as `satstore probe --run` does, and return the run anew."""
    [outcome] = run_stages([Run(run.path)], make_tasks(["probe"], parameters), with_needs=False)
    if outcome.error is not None:
        raise outcome.error
    return Run(run.path)


def pending(run: Run, **parameters: Any) -> list[str]:
    return STAGES["probe"].plan(Run(run.path), STAGES["probe"].parameters(**parameters)).missing


def test_probe__that_was_fitted_stays_so_where_another_start_is_refused(run: Run) -> None:
    """Nothing was changed when it was refused: what is done is not failed, and what is not done is."""
    for status in ("failed", "done"):
        with pytest.raises(DeviceError, match="device 'cuda:99' is not there"):
            start(run, device="cuda:99", overwrite=status == "done", max_iter=20)
        assert Run(run.path).status("probe") == status
        before = start(run, max_iter=20).manifest.stages["probe"]
    start(run, max_iter=20)
    assert Run(run.path).manifest.stages["probe"] == before


def lines(run: Run, table: str = "pool4") -> dict[str, str]:
    """A table's lines as they are on disk, by layer."""
    _, *rows = run.read_file(f"probe-{table}.csv").decode().splitlines()
    return {row.split(",")[0]: row for row in rows}


def set_digests(run: Run, **layers: str) -> None:
    """Give each layer's latents a digest of its own, as extraction does."""
    digests = {layer: layers.get(layer, "0") for layer in run.layers}
    record = run.manifest.latents[POOL4].model_copy(update={"layers": {"train": digests, "eval": digests}})
    run.commit(change=lambda manifest: manifest.latents.update({POOL4: record}))


# The table


def test_probe__writes_a_row_per_layer_in_forward_order(run: Run) -> None:
    table = start(run).table("probe-pool4")
    assert list(table.columns) == COLUMNS
    assert list(table["layer"]) == list(LAYERS)
    assert list(table["n_features"]) == [16, 24, 5]
    assert table["converged"].all()
    assert (table["duration_s"] > 0).all()
    assert (table["peak_memory_bytes"] > 2**20).all()
    assert table["error"].isna().all()


def test_probe__rows_say_what_its_coefficients_do(run: Run) -> None:
    table = start(run, C=0.5).table("probe-pool4").set_index("layer")
    for layer in LAYERS:
        probe = AnalysisStore(run.analysis_path).probe("pool4", layer)
        for split in ("train", "eval"):
            latents = run.latents("pool4", split)
            logits = latents[layer].numpy().reshape(SIZES[split], -1) @ probe["coef"].T + probe["intercept"]
            accuracy = np.mean(logits.argmax(axis=1) == latents.labels)
            assert table.loc[layer, f"{split}_accuracy"] == pytest.approx(accuracy, abs=1e-9)
            if split == "train":
                powers = np.exp(logits)
                losses = -np.log((powers / powers.sum(1, keepdims=True))[np.arange(60), latents.labels])
                assert table.loc[layer, "train_loss"] == pytest.approx(losses.mean(), rel=1e-5)
                objective = 0.5 * (probe["coef"] ** 2).sum() + 0.5 * losses.sum()
                assert table.loc[layer, "objective"] == pytest.approx(objective, rel=1e-5)
        assert table.loc[layer, "top5"] == 1, "there are three classes"


@pytest.mark.long
def test_probe__processes_side_by_side_fit_the_same(run: Run) -> None:
    columns = COLUMNS[: COLUMNS.index("duration_s")]
    alone = start(run).table("probe-pool4")[columns]
    together = start(run, workers=2, overwrite=True).table("probe-pool4")[columns]
    assert alone.equals(together)


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.long)])
def test_probe__a_cluster_that_is_there_fits_the_same(run: Run, processes: bool) -> None:
    from distributed import LocalCluster

    columns = COLUMNS[: COLUMNS.index("duration_s")]
    alone = start(run).table("probe-pool4")[columns]
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "memory_limit": None}
    options |= {"processes": processes, "protocol": "tcp://"}
    with threadpool_limits(2, user_api="blas"):
        before = threadpool_info()
        with LocalCluster(n_workers=1, threads_per_worker=2, **options) as cluster:
            joined = start(run, scheduler=cluster.scheduler_address, overwrite=True)
        assert threadpool_info() == before, "BLAS has its threads again"
    assert joined.table("probe-pool4")[columns].equals(alone)


def test_probe__a_scheduler_that_does_not_answer_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("satstore.stages.probe.dask_backend.CONNECT_S", 1)
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 within 1 s"):
        start(run, scheduler="tcp://127.0.0.1:9")
    assert pending(run) == [f"{layer} at pool4" for layer in run.layers]


@pytest.mark.parametrize("limit", [2**28, 2**31])
def test_probe__the_memory_limit_changes_no_bit(run: Run, limit: int) -> None:
    columns = COLUMNS[: COLUMNS.index("duration_s")]
    held = start(run).table("probe-pool4")[columns]
    limited = start(run, memory_limit=resident_bytes() + limit, overwrite=True).table("probe-pool4")[columns]
    assert limited.equals(held)


# What is fitted again


def test_probe__nothing_is_fitted_twice(run: Run) -> None:
    first = start(run).read_file("probe-pool4.csv")
    assert pending(run) == []
    assert start(run).read_file("probe-pool4.csv") == first


def test_probe__only_a_layer_whose_latents_changed_is_fitted_again(run: Run) -> None:
    set_digests(run)
    before = lines(start(run))
    set_digests(Run(run.path), fc="1")
    assert pending(run) == ["fc at pool4"]
    after = lines(start(run))
    assert list(after) == list(LAYERS)
    assert {layer for layer in LAYERS if after[layer] != before[layer]} <= {"fc"}
    assert pending(run) == []


def test_probe__latents_that_changed_can_be_fitted_with_other_settings(run: Run) -> None:
    set_digests(run)
    start(run)
    set_digests(Run(run.path), **dict.fromkeys(LAYERS, "1"))
    after = start(run, C=0.1, layers="fc")
    assert list(after.table("probe-pool4")["layer"]) == ["fc"], "no row of other settings stays beside it"
    assert after.manifest.probes[ProbeKey(POOL4)].C == 0.1


@pytest.mark.parametrize("other", [{"C": 0.1}, {"tol": 1e-2}, {"max_iter": 7}])
def test_probe__other_settings_need_overwrite_or_a_prefix(run: Run, other: dict[str, Any]) -> None:
    first = start(run).read_file("probe-pool4.csv")
    with pytest.raises(
        ConfigError, match=r"C 1\.0, tol 0\.0001, max_iter 1000; .*--overwrite .*--prefix NAME"
    ):
        start(run, **other)
    with pytest.raises(ConfigError, match="for all their layers"):
        start(run, layers="fc", overwrite=True, **other)
    assert Run(run.path).read_file("probe-pool4.csv") == first

    [(name, value)] = other.items()
    assert getattr(start(run, overwrite=True, **other).manifest.probes[ProbeKey(POOL4)], name) == value
    assert pending(run, **other) == []


def test_probe__fits_the_layers_asked_for_and_the_others_later(run: Run) -> None:
    some = lines(start(run, layers="stem|fc", exclude="^f"))
    assert list(some) == ["stem"]
    both = lines(start(run, exclude="conv"))
    assert list(both) == ["stem", "fc"]
    every = lines(start(run))
    assert list(every) == list(LAYERS)
    assert every["stem"] == some["stem"]
    assert every["fc"] == both["fc"]

    again = start(run, layers="fc", overwrite=True)
    kept = lines(again)
    assert {layer: kept[layer] for layer in LAYERS if layer != "fc"} == {
        layer: every[layer] for layer in LAYERS if layer != "fc"
    }
    assert list(again.manifest.summary.probe_accuracy[ProbeKey(POOL4)]) == list(LAYERS)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("stm", r"no layer left by --layers 'stm'; did you mean 'stem'"), ("(", r"'\('")],
)
def test_probe__layers_that_are_none_are_an_error(run: Run, layers: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        start(run, layers=layers)


def test_probe__reads_manifests_that_kept_no_digest_per_layer(run: Run) -> None:
    start(run)
    path = run.path / "manifest.json"
    content = json.loads(path.read_text())
    content["probes"] = {"pool4": {"latents": "d", "C": 1.0, "tol": 1e-4, "max_iter": 1000}}
    path.write_text(json.dumps(content))
    assert len(Run(run.path).confusion("fc")) == 3
    assert len(pending(run)) == 3
    assert list(lines(start(run))) == list(LAYERS)


def test_probe__a_lost_table_names_the_command(run: Run) -> None:
    start(run)
    (run.path / "probe-pool4.csv").write_bytes(b"")
    with pytest.raises(CorruptError, match=rf"satstore probe --run {run.name} -d 4 --overwrite"):
        start(run)
    assert list(lines(start(run, overwrite=True))) == list(LAYERS)


def test_probe__opens_the_latents_of_each_split_once_for_all_layers(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents, opened = Run.latents, []

    def see(run: Run, key: str, split: str) -> LatentSplit:
        opened.append((key, split))
        return latents(run, key, split)

    monkeypatch.setattr(Run, "latents", see)
    start(run)
    assert opened == [("pool4", "train"), ("pool4", "eval")]


# Prefixes


def test_probe__prefixes_keep_settings_side_by_side(run: Run) -> None:
    first = start(run).read_file("probe-pool4.csv")
    found = start(run, prefix="C0.01", C=0.01)
    assert found.read_file("probe-pool4.csv") == first
    assert found.manifest.probes[ProbeKey.parse("C0.01-pool4")].C == 0.01
    assert found.manifest.probes[ProbeKey(POOL4)].C == 1
    assert pending(run) == pending(run, prefix="C0.01", C=0.01) == []

    small, large = (AnalysisStore(run.analysis_path).probe(key, "fc") for key in ("C0.01-pool4", "pool4"))
    assert (small["coef"] ** 2).sum() < (large["coef"] ** 2).sum(), "a smaller C shrinks more"
    accuracy = found.table("probe-C0.01-pool4").set_index("layer")["eval_accuracy"]
    assert found.manifest.summary.probe_accuracy[ProbeKey.parse("C0.01-pool4")] == accuracy.to_dict()
    assert np.trace(found.confusion("fc", "C0.01-pool4")) / 30 == accuracy["fc"]

    console = Console(width=200, file=io.StringIO())
    print_layers(console, found)
    assert "probe C0.01-pool4" in console.file.getvalue()  # type: ignore[attr-defined]
    drawn = [line.get_label() for line in plot_layers(found).axes[0].lines]
    assert drawn == ["probe accuracy (pool4)"]


@pytest.mark.parametrize("prefix", ["", "-a", ".a", "a/b", "a b", "a" * 41, "pool4", "full", "pixelwise"])
def test_probe__a_prefix_is_a_plain_name(prefix: str) -> None:
    with pytest.raises(ValidationError, match="prefix"):
        STAGES["probe"].parameters(prefix=prefix)


def test_probe__a_prefix_may_hold_what_joins_it_to_the_pooling(run: Run) -> None:
    found = start(run, prefix="a-b.c+d-", layers="fc")
    assert list(found.manifest.probes) == [ProbeKey(POOL4, "a-b.c+d-")]
    assert found.has_file("probe-a-b.c+d--pool4.csv")
    with pytest.raises(NotFoundError, match=r"satstore probe --run res/.* -d 4 --prefix a-b\.c\+d-$"):
        found.confusion("stem", "a-b.c+d--pool4")


# Confusion


def test_confusion__counts_the_eval_split_by_class_name(run: Run) -> None:
    found = start(run)
    probe = AnalysisStore(run.analysis_path).probe("pool4", "fc")
    latents = run.latents("pool4", "eval")
    predicted = (latents["fc"].numpy() @ probe["coef"].T + probe["intercept"]).argmax(axis=1)
    confusion = found.confusion("fc")
    assert (confusion.index.name, confusion.columns.name) == ("true_class", "predicted_class")
    assert list(confusion.index) == list(confusion.columns) == CLASSES
    for true, row in enumerate(CLASSES):
        for guess, column in enumerate(CLASSES):
            expected = np.sum((latents.labels == true) & (predicted == guess))
            assert confusion.loc[row, column] == expected
    accuracy = found.class_accuracy("fc")
    assert accuracy["bee"] == np.mean(predicted[latents.labels == 1] == 1)
    assert list(accuracy.index) == CLASSES


def test_confusion__says_what_is_missing_and_the_command(run: Run) -> None:
    with pytest.raises(NotFoundError, match=rf"fit it with: satstore probe --run {run.name} -d 4$"):
        run.confusion("fc")
    found = start(run, layers="fc")
    with pytest.raises(UnknownNameError, match=r"no layer 'stm'; did you mean 'stem'\?"):
        found.confusion("stm")
    with pytest.raises(NotFoundError, match="no probe of layer stem at 'pool4'"):
        found.confusion("stem")
    with pytest.raises(NotFoundError, match=r"at 'pool2' \(tables fitted: pool4\).* -d 2$"):
        found.confusion("fc", "pool2")


@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_confusion__of_a_damaged_store_names_the_command(run: Run, damage: str) -> None:
    found = start(run)
    [chunk] = (p for p in (run.analysis_path / "probes/pool4/fc/confusion/c").rglob("*") if p.is_file())
    content = chunk.read_bytes()
    chunk.unlink() if damage == "delete" else chunk.write_bytes(content[:-9] + b"!" + content[-8:])
    with pytest.raises(CorruptError, match=r"satstore probe .*--overwrite"):
        found.confusion("fc")
    assert len(start(run, overwrite=True).confusion("fc")) == 3


def test_confusion__of_two_classes_opens_with_xarray(tmp_path: Path) -> None:
    run = start(make_experiment(tmp_path, {"train": [0, 2] * 20, "eval": [0, 2] * 5}))
    assert list(run.confusion("fc").index) == ["ant", "cat"]
    tree = xr.open_datatree(run.analysis_path, engine="zarr", consolidated=False)
    group = tree["probes/pool4/fc"]
    assert group["coef"].dims == ("class", "feature")
    assert group["coef"].shape == (1, 5)
    assert list(group["class_index"].values) == [0, 2]
    tree.close()


# What can't be probed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_probe__values_that_are_not_finite_are_told_and_the_other_layers_go_on(
    tmp_path: Path, value: float
) -> None:
    run = start(make_experiment(tmp_path, spoil={"block.0.conv": value}))
    table = run.table("probe-pool4").set_index("layer")
    error = table.loc["block.0.conv", "error"]
    assert "2 values are NaN or infinite, in 2 of 60 rows (3, 5)" in error
    assert not table.loc["block.0.conv", "converged"]
    assert table.loc[["stem", "fc"], "eval_accuracy"].notna().all()
    assert f"probe: layer block.0.conv at pool4 has no probe: {error}" in run.manifest.warnings
    assert pending(run) == []
    with pytest.raises(NotFoundError, match=r"layer block\.0\.conv at pool4 allows no probe; .*csv"):
        run.confusion("block.0.conv")
    assert summarize_layers(run)[1]["probe_accuracy"] == {"pool4": None}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1] * 20, "the train split has one class, 'bee' only; a probe needs samples of two classes or more"),
        ([1], "the train split has one sample only"),
    ],
)
def test_probe__one_class_or_one_sample_is_told(tmp_path: Path, labels: list[int], expected: str) -> None:
    run = start(make_experiment(tmp_path, {"train": labels, "eval": [1, 1]}))
    table = run.table("probe-pool4")
    assert list(table["layer"]) == list(LAYERS)
    assert table["error"].str.startswith(expected).all()
    assert not table["converged"].any()


def test_probe__classes_that_one_split_lacks_are_named(tmp_path: Path) -> None:
    run = start(make_experiment(tmp_path, {"train": [0, 1] * 20, "eval": [1, 2, 2, 2] * 5}))
    assert (
        "probe: at pool4, the eval split has 1 classes that the train split lacks ('cat'): their samples "
        "count as wrong; give both splits the same classes" in run.manifest.warnings
    )
    assert any("the eval split lacks ('ant')" in warning for warning in run.manifest.warnings)
    assert (run.table("probe-pool4")["eval_accuracy"] <= 5 / 20).all()
    assert run.confusion("fc").to_numpy().sum() == 5, "over the classes of the train split"
    accuracy = run.class_accuracy("fc")
    assert np.isnan(accuracy["ant"])
    assert accuracy["bee"] == run.confusion("fc").loc["bee", "bee"] / 5


@pytest.mark.parametrize("label", [-1, 3])
def test_probe__labels_of_no_class_are_refused(tmp_path: Path, label: int) -> None:
    run = make_experiment(tmp_path, make_labels() | {"eval": [0, 1, label]})
    with pytest.raises(
        CorruptError,
        match=rf"the eval labels at pool4 hold {label}, expected 0 to 2, .*extract --run {run.name} -d 4",
    ):
        start(run)
    assert not Run(run.path).has_file("probe-pool4.csv")
    assert len(pending(run)) == 3


def test_probe__fewer_labels_than_samples_are_refused(run: Run) -> None:
    store = open_store(run.latents_location, run.commits)
    label = zarr.open_group(store, mode="a")["pool4/eval/label"]
    label.resize((29,))  # type: ignore[union-attr]
    store.commit()
    with pytest.raises(
        CorruptError,
        match=r"layer stem at pool4 has 30 eval samples, but there are 29 labels; .*satstore extract",
    ):
        start(run)
    assert len(pending(run)) == 3


def test_probe__labels_that_cannot_be_read_name_the_command(run: Run) -> None:
    [chunk] = (p for p in (run.latents_path / "pool4/train/label/c").rglob("*") if p.is_file())
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(CorruptError, match=r"label can't be read .*satstore extract$"):
        start(run)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_probe__a_memory_limit_that_is_too_small_names_both(run: Run, workers: int) -> None:
    with pytest.raises(
        MemoryLimitError,
        match=r"layer \S+ at pool4: about .* of memory are needed, the limit is 1 MiB; raise --memory-limit",
    ):
        start(run, memory_limit=2**20, workers=workers)
    assert pending(run) == [f"{layer} at pool4" for layer in run.layers]


def test_probe__warnings_of_what_was_fitted_again_are_gone(run: Run) -> None:
    stopped = start(run, max_iter=1)
    assert any("fc at pool4 did not converge in 1 iterations" in w for w in stopped.manifest.warnings)
    again = start(run, overwrite=True)
    assert not [warning for warning in again.manifest.warnings if "converge" in warning]


# Positions


def test_commit_layer__a_layer_of_many_positions_has_a_row_of_each(run: Run) -> None:
    record = run.manifest.latents[POOL4]
    run.commit(change=lambda manifest: manifest.latents.update({LatentsKey("pixelwise"): record}))
    key = ProbeKey(LatentsKey("pixelwise"))
    discard_old_probes(run, key, run.layers, ProbesRecord(C=1, tol=1e-4, max_iter=1000))
    accuracy = np.arange(6).reshape(2, 3) / 10
    stem = {"layer": "stem", "n_features": 4, "n_iter": 7}
    rows = [
        {**stem, "y": y, "x": x, "eval_accuracy": accuracy[y, x], "converged": x > 0}
        for x in range(3)
        for y in range(2)
    ]
    arrays = {
        "accuracy": accuracy,
        "coef": np.ones((2, 3, 3, 4)),
        "intercept": np.zeros((2, 3, 3)),
        "confusion": np.ones((2, 3, 3, 3), np.int64),
        "class_index": np.arange(3),
    }
    single = {"layer": "fc", "n_features": 5, "y": 0, "x": 0, "eval_accuracy": 0.5, "converged": True}
    commit_layer(run, key, "fc", ProbeResult((single,)))
    commit_layer(run, key, "stem", ProbeResult(tuple(rows), arrays))

    found = Run(run.path)
    table = found.table("probe-pixelwise")
    assert list(table.columns) == ["layer", "y", "x", *COLUMNS[1:]]
    places = [("stem", y, x) for y in range(2) for x in range(3)]
    assert list(table[["layer", "y", "x"]].itertuples(index=False, name=None)) == [*places, ("fc", 0, 0)]
    assert list(table["eval_accuracy"][:6]) == list(accuracy.ravel())
    assert found.manifest.summary.probe_accuracy[key] == {"fc": 0.5, "stem": pytest.approx(0.25)}
    [warning] = found.manifest.warnings
    assert warning == "probe: layer stem at pixelwise did not converge in 7 iterations at 2 of 6 positions"
    assert (found.confusion("stem", "pixelwise").to_numpy() == 6).all()
    tree = xr.open_datatree(run.analysis_path, engine="zarr", consolidated=False)
    group = tree["probes/pixelwise/stem"]
    assert {name: group[name].dims for name in ("accuracy", "coef")} == {
        "accuracy": ("y", "x"),
        "coef": ("y", "x", "class", "channel"),
    }
    tree.close()
    [line] = [line for line in plot_layers(found).axes[0].lines if "pixelwise" in str(line.get_label())]
    assert np.asarray(line.get_ydata())[0] == pytest.approx(0.25)


# Processes


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process begin a new peak")
def test_peak_bytes__are_those_since_the_last_reset() -> None:
    """In a process that holds little else: from a large one, the system may take pages meanwhile."""
    found = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    resident, high, low, last = map(int, found.stdout.split())
    # The kernel counts pages per core and adds the counts up now and then: so not to the byte.
    assert high > 0.99 * resident > 2**27
    assert high - low > 0.9 * 2**27
    assert last - low > 0.9 * 2**26


PEAKS = """
import numpy as np
from satstore.system.memory import reset_peak, peak_bytes, resident_bytes
reset_peak()
ballast = np.ones(2**27, np.uint8)
print(resident_bytes(), peak_bytes())
del ballast
reset_peak()
print(peak_bytes())
ballast = np.ones(2**26, np.uint8)
print(peak_bytes())
"""

MANY = {f"layer{i}": (64, 4, 4) for i in range(8)}


def check_goes_on(run: Run, before: dict[str, str], status: str) -> None:
    """What was fitted before the fourth layer is kept; the rest is fitted now."""
    assert list(before) == list(MANY)[:3]
    assert Run(run.path).status("probe") == status
    after = lines(start(run))
    assert list(after) == list(MANY)
    assert {layer: after[layer] for layer in before} == before
    assert Run(run.path).status("probe") == "done"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a peak of memory that can be reset")
def test_memory_peaks__of_fits_side_by_side_are_each_their_own() -> None:
    size = 2**27
    peaks = MemoryPeaks()
    with peaks.watch_fit() as first:
        np.ones(size, np.uint8)
        with peaks.watch_fit() as second:
            second_peak = second()
            assert first() - second_peak > size / 2


def test_probe__interrupted_keeps_what_was_fitted_and_fits_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_experiment(tmp_path, layers=MANY)
    fit_layer = probe_fit.fit_layer

    def interrupt(job: ProbeJob, backend: Backend) -> ProbeResult:
        if job.layer == "layer3":
            raise KeyboardInterrupt
        return fit_layer(job, backend)

    with monkeypatch.context() as patch:
        patch.setattr(probe_fit, "fit_layer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            start(run)
    check_goes_on(run, lines(Run(run.path)), "cancelled")


@pytest.mark.long
def test_probe__killed_keeps_what_was_fitted_and_fits_the_rest(tmp_path: Path) -> None:
    run = make_experiment(tmp_path, make_labels(train=400), MANY, plugins=("held",))
    words = ["probe", "--run", "res", "--logs-dir", run.path.parents[1]]
    with Held(tmp_path / "held", "layer layer3", *words) as held:
        held.wait_for("layer layer3")
        held.send(signal.SIGKILL)
        held.end()
    assert held.process.returncode == -signal.SIGKILL
    check_goes_on(run, lines(Run(run.path)), "failed")


@pytest.mark.long
def test_cluster__passes_over_workers_that_are_lost_while_it_asks() -> None:
    with start_cluster(1) as cluster:
        assert cluster.run(lambda: os._exit(1)) == []


def mortal_sums(run: Run, cluster: Cluster, *, folder: Path | None = None, number: int = 0) -> list[Any]:
    """Return what one query of a layer gives; where a folder is given, a worker dies of it."""
    source = LatentSource(str(run.latents_path), POOL4, "train", "stem", "d")
    weights = np.random.default_rng(0).normal(size=(1, 3, 16)).astype(np.float32)
    query = EvaluationQuery(weights, np.zeros((1, 3), np.float32), None, 5)
    engine = DaskEngine(cluster, source, np.arange(60) % 3, 3)
    return list(engine.sums(query if folder is None else Mortal(query, folder, number)))


@pytest.mark.long
@pytest.mark.parametrize("number", [1, 2])
def test_cluster__a_worker_that_dies_of_receiving_a_query_is_done_without(
    run: Run, number: int, tmp_path: Path
) -> None:
    """It was a pass that failed, where the first to receive it died, and one without an end at the second."""
    (tmp_path / "received").mkdir()
    with start_cluster(2) as cluster:
        whole = mortal_sums(run, cluster)
        found = mortal_sums(run, cluster, folder=tmp_path / "received", number=number)
    assert len(list((tmp_path / "received").iterdir())) >= 1
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_cluster__takes_large_queries_without_a_warning(run: Run) -> None:
    """Of a task of more than 10 MB Dask warns, which is an error here."""
    from distributed import LocalCluster

    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "memory_limit": None}
    options |= {"processes": False, "protocol": "tcp://"}
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, **options) as local,
        join_cluster(local.scheduler_address) as cluster,
    ):
        assert cluster.client.submit(len, np.zeros(2**24, np.uint8)).result() == 2**24


WORKER = """
import os, sys, threading

def see(event, arguments):
    if event == "open" and "/train/layer3/latent/c/" in str(arguments[0]):
        try:
            os.close(os.open("{folder}/claimed", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        with open("{folder}/told", "w") as told:
            told.write(str(os.getpid()))
        threading.Event().wait()

sys.addaudithook(see)
"""
"""Makes the first worker that reads a layer tell its number, and wait for its end."""


def kill_who_tells(told: int) -> int:
    ready, _, _ = select.select([told], [], [], HANGS_S)
    assert ready, "no worker came to the layer"
    pid = int(os.read(told, 100))
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.mark.long
def test_probe__a_killed_workers_rows_are_computed_again(tmp_path: Path) -> None:
    run = make_experiment(tmp_path / "spread", make_labels(train=400), MANY)
    alone = make_experiment(tmp_path / "alone", make_labels(train=400), MANY)
    (tmp_path / "worker.py").write_text(WORKER.format(folder=tmp_path))
    os.mkfifo(tmp_path / "told")
    told = os.open(tmp_path / "told", os.O_RDWR)
    preload = dask.config.set({"distributed.worker.preload": [str(tmp_path / "worker.py")]})
    with preload, ThreadPoolExecutor(1) as killer:
        killed = killer.submit(kill_who_tells, told)
        found = start(run, workers=2)
        assert killed.result() != os.getpid()
    os.close(told)
    columns = COLUMNS[: COLUMNS.index("duration_s")]
    assert found.table("probe-pool4")[columns].equals(start(alone).table("probe-pool4")[columns])


@pytest.mark.long
def test_probe__of_processes_that_start_at_once_one_fits_and_the_others_are_refused(tmp_path: Path) -> None:
    run = make_experiment(tmp_path)
    command = [sys.executable, "-m", "satstore", "probe", "--run", "res", "--logs-dir", str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=WORKS_S)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes.count(0) == 1 or (codes.count(0) > 1 and "LockedError" not in "".join(said))
    for process, text in zip(processes, said, strict=True):
        if process.returncode:
            assert "is being written by process" in text
            assert text.count("\n") == 1
    run.reload()
    assert list(run.table("probe-pool4")["layer"]) == list(LAYERS)


def test_lock__refuses_a_second_probe_at_once_and_names_the_holder(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited for the lock"))
    with run.lock(), pytest.raises(LockedError) as caught:
        start(Run(run.path))
    said = str(caught.value)
    assert f"is being written by process {os.getpid()} on {platform.node()} since 20" in said
    assert run.manifest.probes == {}


def test_layers__that_gave_no_number_are_marked_in_tables_and_plots(tmp_path: Path) -> None:
    run = start(make_experiment(tmp_path, spoil={"block.0.conv": math.nan}), layers="stem|block")
    console = Console(width=120, record=True, file=io.StringIO())
    print_layers(console, run)
    rows = {line.split()[0]: line for line in console.export_text().splitlines()}
    assert rows["block.0.conv"].split()[-1] == "✗"
    assert rows["fc"].split()[-1] == "–", "was not asked for"
    assert rows["stem"].split()[-2].endswith("%") or rows["stem"].split()[-1].endswith("%")
    assert rows["✗"] == "✗ no number: the warnings say why"
    axes = plot_layers(run, all_layers=True).axes[0]
    [crosses] = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert list(crosses.get_xdata()) == [1]
    assert crosses.get_label() == "probe accuracy (pool4): no number"
