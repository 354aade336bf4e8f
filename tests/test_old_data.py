"""Runs of every format version still open, with the numbers that they had.

``data/format-<n>.zip`` is a logs folder as it was written then; nothing in it is ever changed.
"""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command_line import satstore

from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.errors import CorruptError
from satstore.reports.run_curves import read_curves
from satstore.runs.logs_folder import open_run
from satstore.runs.run import Run
from satstore.storage.files import FORMAT_VERSION
from satstore.storage.zarr import open_latents

DATA = Path(__file__).parent / "data"


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The run of format version 1: vgg8_XS on the digits, some layers, latents at 1 x 1."""
    with zipfile.ZipFile(DATA / "format-1.zip") as archive:
        archive.extractall(tmp_path)
    return open_run("v1", tmp_path)


def test_data__of_every_format_version_are_there() -> None:
    assert [path.name for path in sorted(DATA.glob("format-*.zip"))] == [
        f"format-{n}.zip" for n in range(1, FORMAT_VERSION + 1)
    ]


def test_version_1__has_the_latents_that_it_had(run: Run) -> None:
    found = {}
    for split in ("train", "eval"):
        latents = run.latents("pool1", split)
        found |= {(split, layer): sha256(array.numpy()) for layer, array in latents.items()}
        found[split, ""] = sha256(latents.labels)
    assert found == {
        ("train", "features.0"): "45b325e9f1e1a7fa",
        ("train", "classifier.2"): "8d46efcb3bebfc38",
        ("train", "classifier.6"): "2c2165263af35aea",
        ("train", ""): "834db2c141908ff9",
        ("eval", "features.0"): "d851c6450c82d975",
        ("eval", "classifier.2"): "25d8c80f15e2480b",
        ("eval", "classifier.6"): "03685d06f45cc010",
        ("eval", ""): "723b354289d5bac3",
    }


def test_version_1__has_the_results_that_it_had(run: Run) -> None:
    summary = run.manifest.summary
    assert summary.test_accuracy == pytest.approx(0.8805555555555555)
    assert summary.saturation == {"features.0": 0.1875, "classifier.2": 0.703125, "classifier.6": 0.8}
    probes = run.table("probe-pool1").set_index("layer")["eval_accuracy"]
    assert probes.to_dict() == pytest.approx(summary.probe_accuracy[ProbeKey(LatentsKey("1"))])
    table = run.saturation(0.9, split="train").query("epoch == 1")
    assert list(table["intrinsic_dimension"]) == [2, 9, 5]
    assert not read_curves(run.path).problems
    assert run.confusion("classifier.6").to_numpy().sum() == 360


def test_version_1__is_sound_and_can_be_worked_on(run: Run) -> None:
    logs = run.path.parents[1]
    done = satstore("verify", "v1", "--logs-dir", logs)
    assert done.returncode == 0, done.stdout
    done = satstore("run", "--config", run.path / "config.json", "--run-id", "v1", "--logs-dir", logs)
    assert "5 found done" in done.stdout, "its config still has the digest that it had"
    done = satstore("probe", "--run", "v1", "--prefix", "again", "--logs-dir", logs)
    assert done.returncode == 0, done.stderr
    again = Run(run.path).manifest.summary.probe_accuracy
    key = LatentsKey("1")
    for layer, accuracy in again[ProbeKey(key)].items():
        assert again[ProbeKey(key, "again")][layer] == pytest.approx(accuracy, abs=0.01)


def test_newer_versions__are_refused_by_name(run: Run) -> None:
    newer = FORMAT_VERSION + 1
    for path in (run.path / "latents.zarr/zarr.json", run.path / "analysis.zarr/zarr.json"):
        content = json.loads(path.read_text())
        content["attributes"]["format_version"] = newer
        path.write_text(json.dumps(content))
    with pytest.raises(CorruptError, match=f"has format version {newer}; this one reads {FORMAT_VERSION}"):
        open_latents(run.path / "latents.zarr")
    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps(manifest | {"format_version": newer}))
    with pytest.raises(CorruptError, match=f"has format version {newer}; this satstore reads"):
        Run(run.path)
