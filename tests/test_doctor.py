"""`satstore doctor`: what it finds, here and where something is wrong."""

import importlib.metadata
import json
from pathlib import Path

import pytest
from command_line import call

from satstore.cli import doctor
from satstore.files import WriteError


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

    monkeypatch.setattr("satstore.files.write_file", refuse)
    code, found = states("--logs-dir", tmp_path / "logs")
    assert code == 1
    state, text = found["logs folder"]
    assert state == "bad"
    assert "Read-only file system; choose another with --logs-dir" in text
