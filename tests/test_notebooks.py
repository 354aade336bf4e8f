"""The notebooks run, on the demo's run, and what they show is what they showed."""

import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from command_line import WORKS_S
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture
def logs(demo_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the demo's logs, which kernels take, with one thread and no profile of the user's."""
    monkeypatch.setenv("SATSTORE_LOGS_DIR", str(demo_copy))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return demo_copy


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Execute a notebook in an empty folder, in which it leaves nothing."""
    folder.mkdir()
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=WORKS_S, coalesce_streams=True).execute(cwd=str(folder))
    assert list(folder.iterdir()) == []
    return notebook


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook__runs(path: Path, logs: Path, demo_logs: Path, tmp_path: Path) -> None:
    kept = nbformat.read(path, as_version=4)
    # Those that record a model find it there the second time; the demo is there for the others.
    records = any("satstore.record(" in cell.source for cell in kept.cells)
    for number in range(2 if records else 1):
        notebook = execute(path, tmp_path / f"work{number}")
        for cell, before in zip(notebook.cells, kept.cells, strict=True):
            if cell.cell_type == "code":
                assert kinds(cell) == kinds(before), f"run: python notebooks/execute.py {path.name}"
    [checkpoint] = demo_logs.glob("demo/*/checkpoint.pt")
    found = logs / checkpoint.relative_to(demo_logs)
    assert found.stat().st_mtime_ns == checkpoint.stat().st_mtime_ns, "the demo was trained anew"


def kinds(cell: nbformat.NotebookNode) -> list[list[str]]:
    """Return what a cell shows, by kind: numbers and pictures differ with versions and machines."""
    return [sorted(part.get("data", {part.get("name", part.output_type): ""})) for part in cell.outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook__is_kept_with_what_it_shows_and_nothing_else(path: Path) -> None:
    assert path.stat().st_size < 400_000
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "version" not in notebook.metadata.language_info
    assert [cell.id for cell in notebook.cells] == [f"cell-{n}" for n in range(1, len(notebook.cells) + 1)]
    assert all(not cell.metadata for cell in notebook.cells)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    outputs = [part for cell in codes for part in cell.outputs]
    assert sum("image/png" in part.get("data", {}) for part in outputs) >= 3
    assert {part.get("name", "stdout") for part in outputs} == {"stdout"}
    assert "error" not in {part.output_type for part in outputs}
    texts = [cell.source for cell in notebook.cells]
    for part in outputs:
        shown = {"text/plain": part.get("text", "")} | part.get("data", {})
        texts += [text for kind, text in shown.items() if kind != "image/png"]
    assert not re.search(r"/(home|root|tmp|work|Users|usr|var|opt)/|Warning", "\n".join(texts))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook__says_before_each_cell_what_it_does(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert sum(cell.cell_type == "code" for cell in cells) <= 15
    for before, cell in pairwise(cells):
        assert {before.cell_type, cell.cell_type} == {"markdown", "code"}
        if before.cell_type == "markdown":
            assert [line for line in before.source.splitlines() if line and not line.startswith("#")]


def test_notebooks__are_those_of_the_readme() -> None:
    readme = (NOTEBOOKS[0].parents[1] / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in NOTEBOOKS] == sorted(re.findall(r"notebooks/(\w+\.ipynb)", readme))
