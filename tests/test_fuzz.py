"""Readers of what lies on disk, fed with garbage and with damaged files: only a SatstoreError comes out."""

import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from any_content import ALL_READERS, CHANGES, READERS, places
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import run_tiny

from satstore.config.grid import read_config
from satstore.errors import SatstoreError
from satstore.runs.events import read_events
from satstore.runs.manifest_file import read_manifest
from satstore.runs.run import Run
from satstore.runs.verify import Verification
from satstore.storage.commit_log import CommitLog
from satstore.storage.zarr import AnalysisStore, open_latents

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)

N_EXAMPLES = min(40, settings.default.max_examples)
FUZZ = settings(max_examples=N_EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has every table and kind of probe."""
    stages = ["train", "extract", "saturation", "probe", "receptive-field", "project", "flops"]
    return run_tiny(tmp_path_factory.mktemp("whole"), pooling=["2", "pixelwise"], stages=stages)


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> bytes:
    """Return a document with one value replaced, or taken out; or some bytes of it changed."""
    text = json.dumps(document)
    if draw(st.integers(0, 3)) == 0:
        content = bytearray(text.encode())
        for at in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
            content[at] = draw(st.integers(0, 255))
        return bytes(content[: draw(st.sampled_from([len(content), len(content) // 2]))])
    found = json.loads(text)
    *above, last = draw(st.sampled_from([place for place in places(found) if place]))
    parent = found
    for key in above:
        parent = parent[key]
    if draw(st.booleans()):
        parent[last] = draw(JSON)
    else:
        del parent[last]
    return json.dumps(found).encode()


def fuzz(path: Path, read: Callable[[], object], content: bytes) -> None:
    """Read a file with another content; put the old one back."""
    old = path.read_bytes()
    try:
        path.write_bytes(content)
        with suppress(SatstoreError):
            read()
    finally:
        path.write_bytes(old)


def read_all(run: Run) -> None:
    """Read a run as lists, the terminal app and notebooks do."""
    found = Run(run.path)
    found.statuses()
    with suppress(SatstoreError):
        found.saturation()
    for key in list(found.manifest.latents):
        with suppress(SatstoreError):
            found.latents(key.group, "train", key.epoch)
    list(Verification(found).findings())


@FUZZ
@given(data=st.data())
def test_manifest__of_any_content_is_read_or_refused(run: Run, data: st.DataObject) -> None:
    path = run.path / "manifest.json"
    content = data.draw(mutated(json.loads(path.read_bytes())))
    fuzz(path, lambda: read_manifest(run.path), content)
    fuzz(path, lambda: read_all(run), content)


@FUZZ
@given(content=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_manifest_and_config__of_garbage_are_refused(run: Run, content: bytes) -> None:
    fuzz(run.path / "manifest.json", lambda: read_manifest(run.path), content)
    fuzz(run.path / "config.json", lambda: read_config(run.path / "config.json"), content)


@FUZZ
@given(data=st.data())
def test_config__of_any_content_is_read_or_refused(run: Run, data: st.DataObject) -> None:
    path = run.path / "config.json"
    content = data.draw(mutated(json.loads(path.read_bytes())))
    fuzz(path, lambda: read_config(path), content)


@FUZZ
@given(
    content=st.binary(max_size=60)
    | st.lists(JSON, max_size=4).map(lambda x: "\n".join(map(json.dumps, x)).encode())
)
def test_logs__of_any_lines_are_read(run: Run, content: bytes) -> None:
    fuzz(run.path / "events.jsonl", lambda: read_events(run.path / "events.jsonl"), content + b"\n")
    fuzz(
        run.path / "commits.jsonl",
        lambda: CommitLog(run.path / "commits.jsonl").read("latents.zarr"),
        content,
    )


@FUZZ
@given(data=st.data())
def test_commit_log__with_a_line_of_any_content_is_read(run: Run, data: st.DataObject) -> None:
    path = run.path / "commits.jsonl"
    lines = path.read_bytes().splitlines()
    i = data.draw(st.sampled_from([i for i, line in enumerate(lines) if line]))
    lines[i] = data.draw(mutated(json.loads(lines[i])))
    fuzz(path, lambda: read_all(run), b"\n".join(lines) + b"\n")


METADATA = [
    "latents.zarr/zarr.json",
    "latents.zarr/pool2/train/zarr.json",
    "latents.zarr/pool2/train/label/zarr.json",
    "latents.zarr/pool2/train/0/zarr.json",
    "latents.zarr/pool2/train/0/latent/zarr.json",
    "analysis.zarr/zarr.json",
    "analysis.zarr/spectra/train/0/zarr.json",
    "analysis.zarr/spectra/train/0/eigenvalues/zarr.json",
]


@pytest.mark.parametrize("name", METADATA)
@settings(FUZZ, max_examples=15)
@given(data=st.data())
def test_store__with_metadata_of_any_content_is_read_or_refused(
    run: Run, name: str, data: st.DataObject
) -> None:
    path = run.path / name

    def read() -> None:
        if name.startswith("analysis"):
            AnalysisStore(run.analysis_path).spectra("train")
            return
        split = open_latents(run.latents_path).split("pool2", "train")
        assert split.labels is not None
        for layer in split:
            split[layer].numpy()

    fuzz(path, read, data.draw(mutated(json.loads(path.read_bytes()))))


def change_and_read(whole: Run, folder: Path, changes: list[str], seed: int, names: list[str]) -> None:
    """Change a copy of a run, and read it: whatever is in it, what comes out is an error of satstore's."""
    path = folder / "logs" / "res" / whole.experiment
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole.path, path)
    drawn = random.Random(seed)
    for change in changes:
        CHANGES[change](path, drawn)
    for name in names:
        with suppress(SatstoreError):
            ALL_READERS[name](path)


@pytest.mark.filterwarnings("ignore:Object at:UserWarning")  # zarr's, of files that are none of its own
@pytest.mark.parametrize("change", CHANGES)
@settings(FUZZ, max_examples=3)
@given(seed=st.integers(0, 2**32), names=st.lists(st.sampled_from([*READERS]), min_size=6, max_size=6))
def test_readers__of_a_folder_of_any_content_read_or_refuse(
    whole: Run, tmp_path: Path, change: str, seed: int, names: list[str]
) -> None:
    change_and_read(whole, tmp_path / "x", [change], seed, names)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Object at:UserWarning")
@pytest.mark.parametrize("change", CHANGES)
@settings(FUZZ, max_examples=5)
@given(
    others=st.lists(st.sampled_from([*CHANGES]), max_size=2),
    seed=st.integers(0, 2**32),
    names=st.lists(st.sampled_from([*ALL_READERS]), min_size=10, max_size=10),
)
def test_readers__of_a_folder_of_many_changes_read_or_refuse(
    whole: Run, tmp_path: Path, change: str, others: list[str], seed: int, names: list[str]
) -> None:
    change_and_read(whole, tmp_path / "x", [change, *others], seed, names)


def test_fuzz__leaves_the_run_as_it_was(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "res" / run.experiment)
    found = Verification(Run(tmp_path / "res" / run.experiment)).findings()
    assert [str(finding) for finding in found if finding.is_wrong] == []
