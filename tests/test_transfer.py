"""Runs that travel: what is packed opens elsewhere, bit by bit, and what is not a run is refused."""

import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from command_line import call
from damages import delete, flip, truncate
from tiny import results, run_tiny

from satstore.errors import ConfigError, CorruptError, DiskSpaceError, NotFoundError
from satstore.runs.archive import pack_run, unpack_run
from satstore.runs.logs_folder import list_runs
from satstore.runs.run import Run
from satstore.runs.verify import Verification


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def packed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_run(run, tmp_path_factory.mktemp("packed") / "run.zip", with_latents=True)


@pytest.mark.parametrize("below", ["", "below"])
def test_zip__into_a_folder_that_can_not_be_made_is_one_line(
    packed: Path, below: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    code, _, error = call("import", packed, "--logs-dir", tmp_path / "file" / below)
    assert code == 1
    assert len(error.splitlines()) == 1
    assert "can't be written: " in error
    assert (tmp_path / "file").read_text() == "mine"


def test_zip__opens_elsewhere_as_the_same_run(run: Run, packed: Path, tmp_path: Path) -> None:
    found = unpack_run(packed, tmp_path / "logs", "other")
    assert found.name == f"other/{run.experiment}"
    assert [f for f in Verification(found).findings() if f.is_wrong] == []
    expected = results(run)
    assert results(found) == expected
    assert found.statuses() == run.statuses()
    assert [other.name for other in list_runs(tmp_path / "logs")] == [found.name]
    assert {path.name for path in (tmp_path / "logs/other").iterdir()} == {run.experiment}


def test_zip__without_latents_says_how_to_write_them_again(run: Run, tmp_path: Path) -> None:
    logs = run.path.parents[1]
    code, out, _ = call("export", "res", "--to", "zip", "--out", tmp_path, "--logs-dir", logs)
    assert code == 0
    [path] = tmp_path.glob("*.zip")
    assert out.strip() == str(path)
    code, out, _ = call("import", path, "--logs-dir", tmp_path / "logs")
    assert code == 0
    name, said = out.splitlines()
    assert name == run.name
    assert said.endswith(f"write them again with: satstore extract --run {run.name} -d 2")
    [found] = list_runs(tmp_path / "logs")
    assert not (found.path / "latents.zarr").exists()
    assert run_tiny(tmp_path / "logs").status("extract") == "done"
    assert results(Run(found.path)) == results(run)
    code, _, err = call("import", path, "--logs-dir", tmp_path / "logs")
    assert code == 1
    assert "is there already; give it another name with --run-id" in err


@pytest.mark.parametrize("damage", [flip, truncate, delete], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(
    "pattern",
    [
        "metrics.csv",
        "checkpoint.pt",
        "latents.zarr/**/c/0/*",
        "latents.zarr/**/zarr.json",
        "analysis.zarr/**/c/*",
    ],
)
def test_zip__of_a_file_that_is_not_what_was_committed_is_not_made(
    run: Run, pattern: str, damage: Callable[..., Iterator[bytes | None]], tmp_path: Path
) -> None:
    """Of each kind the last by name, which is packed after others."""
    copied = Path(shutil.copytree(run.path.parents[1], tmp_path / "logs")) / "res" / run.experiment
    path = sorted(path for path in copied.glob(pattern) if path.is_file())[-1]
    content = next(iter(damage(path, [])))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    words = (
        "export",
        "res",
        "--to",
        "zip",
        "--latents",
        "--out",
        tmp_path / "out",
        "--logs-dir",
        tmp_path / "logs",
    )
    code, _, err = call(*words)
    assert code == 1
    said = "is committed but not there" if damage is delete else "is not what was committed"
    assert f"{path} {said}; satstore verify {run.name} names what makes it again" in err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("to", ["csv", "parquet"])
def test_export__writes_the_tables(run: Run, to: str, tmp_path: Path) -> None:
    if to == "parquet":
        pytest.importorskip("pyarrow")
    words = ("export", "res", "--to", to, "--out", tmp_path, "--logs-dir", run.path.parents[1])
    code, out, err = call(*words)
    assert code == 0, err
    names = {Path(line).stem for line in out.splitlines()}
    assert names == {"metrics", "saturation", "probe-pool2"}
    path = tmp_path / f"res-{run.experiment}" / f"saturation.{to}"
    found = pd.read_csv(path, dtype={"layer": str}) if to == "csv" else pd.read_parquet(path)
    pd.testing.assert_frame_equal(found, run.table("saturation"))


def test_export__without_pyarrow_names_it(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "fastparquet", None)
    words = ("export", "res", "--to", "parquet", "--out", tmp_path, "--logs-dir", run.path.parents[1])
    code, _, err = call(*words)
    remedy = "install it with: pip install pyarrow"
    assert (code, err) == (1, f"satstore: --to parquet needs pyarrow; {remedy}\n")


def rewrite(packed: Path, path: Path, change: dict[str, bytes | None]) -> Path:
    """Copy a zip file with some members changed, left out or added."""
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(path, "w") as new:
        for name in [*old.namelist(), *(n for n in change if n not in old.namelist())]:
            content = change.get(name, old.read(name) if name in old.namelist() else None)
            if content is not None:
                new.writestr(name, content)
    return path


def test_import__refuses_what_is_no_whole_run(run: Run, packed: Path, tmp_path: Path) -> None:
    home = f"res/{run.experiment}"
    logs = tmp_path / "logs"
    with zipfile.ZipFile(packed) as old:
        shard = next(name for name in old.namelist() if "/latent/c/" in name)
        flipped = bytearray(old.read(shard))
        flipped[len(flipped) // 2] ^= 1
    cases: dict[str, dict[str, bytes | None]] = {
        "is not what was committed": {shard: bytes(flipped)},
        "is committed but not there": {shard: None},
        "no manifest": {f"{home}/manifest.json": None},
        "it holds '../../evil'": {"../../evil": b"x"},
        "it holds '/etc/evil'": {"/etc/evil": b"x"},
        "2 experiments in it": {"res/other/manifest.json": b"{}"},
    }
    for message, change in cases.items():
        path = rewrite(packed, tmp_path / "bad.zip", change)
        with pytest.raises((CorruptError, NotFoundError), match=message):
            unpack_run(path, logs)
        assert list_runs(logs) == []
        assert not logs.exists() or list(logs.rglob("*")) == []
    (tmp_path / "no.zip").write_bytes(b"PK nonsense")
    with pytest.raises(CorruptError, match="can't be unpacked"):
        unpack_run(tmp_path / "no.zip", logs)
    with pytest.raises(NotFoundError, match="no file"):
        unpack_run(tmp_path / "absent.zip", logs)
    with pytest.raises(ConfigError, match="run id"):
        unpack_run(packed, logs, "..")


def test_import__refuses_more_than_there_is_room_for(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("satstore.runs.archive.free_disk", lambda _: 1000)
    with pytest.raises(DiskSpaceError, match=r"holds .* KiB, 1 KiB are free"):
        unpack_run(packed, tmp_path / "logs")
