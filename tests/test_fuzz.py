"""Readers of what lies on disk, fed with garbage and with damaged files: only a SatstoreError comes out."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import run_tiny

from satstore.commits import CommitLog
from satstore.config import read_config
from satstore.errors import SatstoreError
from satstore.events import read_events
from satstore.manifest import read_manifest
from satstore.run import Run
from satstore.store import AnalysisStore, open_latents
from satstore.verify import Verification

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)

FUZZ = settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("logs"))


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value of a JSON document."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [above, *(place for key, child in children for place in places(child, (*above, key)))]


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
            found.latents(key, "train")
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


def test_fuzz__leaves_the_run_as_it_was(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "res" / run.experiment)
    found = Verification(Run(tmp_path / "res" / run.experiment)).findings()
    assert [str(finding) for finding in found if finding.is_wrong] == []
