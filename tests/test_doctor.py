"""`satstore doctor`: what it finds, here and where something is wrong."""

import importlib.metadata
import json
from pathlib import Path

import pytest
from command_line import call

from satstore.cli import doctor
from satstore.storage.files import WriteError


def states(*words: object) -> tuple[int, dict[str, tuple[str, str]]]:
    code, out, _ = call("doctor", "--json", *words)
    return code, {check["what"]: (check["state"], check["found"]) for check in json.loads(out)}


def test_doctor__finds_this_installation_sound(tmp_path: Path) -> None:
    code, found = states("--logs-dir", tmp_path)
    assert code == 0
    assert {what: state for what, (state, _) in found.items() if state == "bad"} == {}
    for what in ("Python", "satstore", "packages", "torch", "logs folder"):
        assert found[what][0] == "ok"
    assert found["terminal"] == ("note", "none; satstore tui needs one, satstore status doesn't")
    assert list(tmp_path.iterdir()) == [], "nothing is left of what was tried"
    code, out, _ = call("doctor", "--logs-dir", tmp_path)
    assert code == 0
    assert len(out.splitlines()) == len(found)


def test_doctor__names_packages_that_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "dask":
            raise importlib.metadata.PackageNotFoundError(name)
        return "2.1.0" if name == "zarr" else real(name)

    monkeypatch.setattr(doctor, "version", version)
    code, found = states("--logs-dir", tmp_path)
    assert code == 1
    state, text = found["packages"]
    assert state == "bad"
    assert "dask is missing" in text
    assert "zarr 2.1.0, expected <4,>=3.1.6" in text


def test_doctor__says_where_runs_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: bytes) -> None:
        raise WriteError(f"{path} can't be written: Read-only file system")

    monkeypatch.setattr("satstore.storage.files.write_file", refuse)
    code, found = states("--logs-dir", tmp_path / "logs")
    assert code == 1
    state, text = found["logs folder"]
    assert state == "bad"
    assert "Read-only file system; choose another with --logs-dir" in text


def test_doctor__does_not_tick_datasets_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("MNIST/raw", "cifar-10-batches-py", "photos/train/cat", "malaria"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "cifar-10-batches-py" / "test_batch").touch()
    (tmp_path / "photos" / "train" / "cat" / "1.png").touch()
    monkeypatch.setenv("TORCH_DATADIR", str(tmp_path))
    code, out, _ = call("doctor", "--logs-dir", tmp_path)
    assert code == 0
    notes = [line.split(None, 2)[-1] for line in out.splitlines() if str(tmp_path) in line and line[0] == "·"]
    assert any(f"{tmp_path / 'MNIST'} has no files" in note for note in notes)
    assert any(f"{tmp_path / 'malaria'} has no files" in note for note in notes)
    assert any("lacks data_batch_1 and 5 more" in note for note in notes)
    ticked = [line for line in out.splitlines() if line[0] == "✓" and "data folder" in line]
    assert [line.partition(": ")[2] for line in ticked] == ["cifar-10-batches-py, photos"]


def test_dataset_check__says_where_the_images_are_and_downloads_nothing_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_DATADIR", str(tmp_path / "data"))
    code, out, _ = call("dataset", "check", "Digits")
    assert (code, out.splitlines()[1]) == (0, "  train: 1,437 images; classes of 139 (8) to 146 (3)")
    code, _, err = call("dataset", "check", "MNIST")
    assert code == 1
    assert "download them: satstore dataset check MNIST --download" in err
    assert not (tmp_path / "data").exists()
