"""Reading a run that is committed to meanwhile: what was committed is read, and only damage is called so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny import run_tiny

from satstore.errors import CorruptError
from satstore.runs.run import Run
from satstore.storage.commit_log import CommitLog, Committed
from satstore.storage.zarr import AnalysisStore


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_tiny(tmp_path_factory.mktemp("made"))
    run.commit({"computational_info.json": run.read_file("computational_info.json")})
    return run


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    """A copy, opened before what the tests commit to it."""
    shutil.copytree(made.path, tmp_path / "logs" / "res" / made.experiment)
    return Run(tmp_path / "logs" / "res" / made.experiment)


def commit_metrics(path: Path) -> pd.DataFrame:
    """Commit another table, as training does after an epoch, in a process of its own as far as files tell."""
    writer = Run(path)
    table = writer.table("metrics")
    changed = pd.concat([table, table.assign(epoch=table["epoch"] + len(table))], ignore_index=True)
    writer.commit({"metrics.csv": changed.to_csv(index=False).encode()})
    return changed


def test_table__that_was_committed_since_the_run_was_opened_is_read(run: Run) -> None:
    changed = commit_metrics(run.path)
    pd.testing.assert_frame_equal(run.table("metrics"), changed)
    commit_metrics(run.path)
    assert len(run.rows("metrics")) == 2 * len(changed)
    commit_metrics(run.path)
    run.check_file("metrics.csv")
    assert run.read_file("metrics.csv") == (run.path / "metrics.csv").read_bytes()


def test_costs__that_were_committed_since_the_run_was_opened_are_read(run: Run) -> None:
    before = run.costs()
    assert before is not None
    Run(run.path).commit({"computational_info.json": json.dumps({**before, "n_epochs": 7}).encode()})
    assert run.costs() == {**before, "n_epochs": 7}


def between(monkeypatch: pytest.MonkeyPatch, commit: Callable[[], object]) -> None:
    """Let something be committed after a reader has read the log, and before it looks at the files."""
    read, begun = CommitLog.read, []

    def read_and_commit(log: CommitLog, store: str) -> Committed:
        found = read(log, store)
        if not begun:
            begun.append(True)
            commit()
        return found

    monkeypatch.setattr(CommitLog, "read", read_and_commit)


def test_spectra__that_are_committed_while_they_are_read_are_whole(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = run.layers
    rows = {layer: found[0] * 0 + 5.0 for layer, found in run.spectra("train").items()}

    def train_an_epoch() -> None:
        AnalysisStore(run.analysis_path, Run(run.path).commits).write_spectra("train", 0, 2, rows)

    between(monkeypatch, train_an_epoch)
    found = run.spectra("train")
    assert list(found) == sorted(layers)
    for layer in layers:
        np.testing.assert_array_equal(found[layer][0], rows[layer])


def test_latents__that_are_committed_while_they_are_read_are_whole(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written anew of other rounding: other bytes of the same shape."""
    expected = run.latents("pool2", "eval").labels
    location = run.latents_location

    def write_anew() -> None:
        log = Run(run.path).commits
        key = next(key for key in log.read(location.name).files if key.endswith("eval/zarr.json"))
        content = location.read(key) + b" "
        from satstore.storage.zarr.durable_store import open_store

        store = open_store(location, log)
        store.write_object(key, content)
        store.commit()

    between(monkeypatch, write_anew)
    np.testing.assert_array_equal(run.latents("pool2", "eval").labels, expected)


READERS: dict[str, Callable[[Run], Any]] = {
    "metrics.csv": lambda run: run.table("metrics"),
    "checkpoint.pt": lambda run: run.read_file("checkpoint.pt"),
    "config.json": lambda run: run.read_file("config.json"),
    "analysis.zarr/spectra/train/0/eigenvalues/c/1/0": lambda run: run.spectra("train"),
    "analysis.zarr/spectra/train/0/zarr.json": lambda run: run.saturation(),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("is_committed_to", [False, True])
def test_readers__never_advise_to_train_over_what_is_there(
    run: Run, name: str, is_committed_to: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run.path / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    if is_committed_to:
        Run(run.path).commit(change=lambda manifest: manifest.warnings.append("another"))
    with pytest.raises(CorruptError, match=f"satstore verify {run.name} says what is damaged") as caught:
        READERS[name](run)
    assert str(path) in str(caught.value)
    assert "--overwrite" not in str(caught.value)
