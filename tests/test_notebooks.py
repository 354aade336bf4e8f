"""The notebooks run, on the demo's run, and what they show is what they showed."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook__runs(path: Path, demo_logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(demo_logs, tmp_path / "logs")
    monkeypatch.setenv("SATSTORE_LOGS_DIR", str(tmp_path / "logs"))
    kept = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, coalesce_streams=True).execute(cwd=str(tmp_path))
    for cell, before in zip(notebook.cells, kept.cells, strict=True):
        if cell.cell_type == "code":
            assert kinds(cell) == kinds(before), f"run: python notebooks/execute.py {path.name}"
    trained = {part.parent.parent.name for part in (tmp_path / "logs").glob("*/*/manifest.json")}
    assert "demo" in trained or "mine" in trained


def kinds(cell: nbformat.NotebookNode) -> list[list[str]]:
    """Return what a cell shows, by kind: numbers and pictures differ with versions and machines."""
    return [sorted(part.get("data", {part.get("name", part.output_type): ""})) for part in cell.outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook__is_kept_with_what_it_shows_and_nothing_else(path: Path) -> None:
    assert path.stat().st_size < 700_000
    notebook = nbformat.read(path, as_version=4)
    outputs = [part for cell in notebook.cells for part in cell.get("outputs", ())]
    assert sum("image/png" in part.get("data", {}) for part in outputs) >= 3
    assert not [part.text for part in outputs if part.get("name") == "stderr"]
    assert not [part for part in outputs if part.output_type == "error"]
    text = " ".join(
        f"{part.get('text', '')} {part.get('data', {}).get('text/plain', '')}" for part in outputs
    )
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    assert all(not cell.metadata for cell in notebook.cells)


def test_notebooks__are_the_three_of_the_readme() -> None:
    readme = (NOTEBOOKS[0].parents[1] / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in NOTEBOOKS] == sorted(re.findall(r"notebooks/(\w+\.ipynb)", readme))
