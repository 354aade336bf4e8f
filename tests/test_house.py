"""The order of the house: which module imports which, sizes, names, and the ways through it."""

import ast
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import FrameType
from typing import Any

import grimp
import pytest
from command_line import satstore

from satstore.analysis.logistic import loss

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("satstore/**/*.py"), *ROOT.glob("tui/**/*.py")])

MOST_FOLDERS, MOST_FILES = 16, 6
MOST_LINES, MOST_FUNCTION_LINES = 400, 40
MOST_FILES_OF_A_PROBE, MOST_STEPS_OF_AN_ACTIVATION = 10, 14

ALLOWED = {
    # `Run.plot()` takes satstore's public name, which is looked up when it is called.
    ("satstore.runs.run", "satstore"),
}
"""Imports that close a circle, each with its reason."""


def read_imports(*packages: str) -> dict[str, set[str]]:
    """Return the modules that each module imports, in functions and for type checkers too."""
    graph = grimp.build_graph(*packages, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def find_circle(imports: dict[str, set[str]]) -> list[str]:
    """Return modules that form a circle, each imported by the next, the first again last; none if none do."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports__form_no_circle() -> None:
    imports = read_imports("satstore", "tui")
    for module, imported in ALLOWED:
        assert imported in imports[module], f"{module} no longer imports {imported}: take it off ALLOWED"
        imports[module].remove(imported)
    circle = find_circle(imports)
    assert not circle, f"a circle of imports: {' <- '.join(circle)}"


@pytest.mark.parametrize(
    "source",
    [
        "from house_of_two.first import name",
        "def work():\n    from house_of_two import first",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house_of_two.first",
    ],
    ids=["module", "function", "type-checking"],
)
def test_circles__are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    folder = tmp_path / "house_of_two"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "first.py").write_text("import house_of_two.second\nname = 1\n")
    (folder / "second.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    imports = read_imports("house_of_two")
    assert set(find_circle(imports)) == {"house_of_two.first", "house_of_two.second"}


def test_top_level__fits_on_a_page() -> None:
    root = ROOT / "satstore"
    entries = {path.relative_to(root).parts for path in SOURCES if path.is_relative_to(root)}
    assert len({parts[0] for parts in entries if len(parts) > 1}) <= MOST_FOLDERS
    assert len({parts[0] for parts in entries if len(parts) == 1}) <= MOST_FILES


def test_modules_and_functions__are_short() -> None:
    long = [str(path) for path in SOURCES if len(path.read_text().splitlines()) > MOST_LINES]
    for path in SOURCES:
        lines = path.read_text().splitlines()
        functions = [n for n in ast.walk(ast.parse("\n".join(lines))) if isinstance(n, ast.FunctionDef)]
        long += [f"{path}: {n.name}" for n in functions if count_code(n, lines) > MOST_FUNCTION_LINES]
    assert not long


def count_code(function: ast.FunctionDef, lines: list[str]) -> int:
    """Count a function's lines of code: without docstrings, comments and blank lines."""
    prose = {
        number
        for node in ast.walk(function)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for number in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    assert function.end_lineno is not None
    numbers = set(range(function.lineno, function.end_lineno + 1)) - prose
    texts = [lines[number - 1].strip() for number in numbers]
    return len([text for text in texts if text and not text.startswith("#")])


def test_names__stand_for_one_thing_each() -> None:
    places = defaultdict(list)
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            is_public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            if isinstance(node, ast.ClassDef) or is_public:
                places[node.name].append(str(path.relative_to(ROOT)))  # type: ignore[attr-defined]
    assert not {name: found for name, found in places.items() if len(found) > 1}


def files_of(frame: FrameType | None) -> Iterator[str]:
    """Yield satstore's files that a stack is in."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(str(ROOT / "satstore")):
            yield frame.f_code.co_filename
        frame = frame.f_back


def test_probe__crosses_few_files_from_the_command_to_the_kernel(
    demo_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, crossed = loss.LossQuery.share, set[str]()
    main = threading.get_ident()

    def share(*words: Any) -> Any:
        crossed.update(files_of(sys._getframe(1)), files_of(sys._current_frames()[main]), [loss.__file__])
        return kernel(*words)

    monkeypatch.setattr(loss.LossQuery, "share", share)
    words = ("--layers", "classifier.6", "--prefix", "again", "--device", "cpu", "--logs-dir", demo_copy)
    assert satstore("probe", "--run", "demo", *words).returncode == 0
    assert crossed
    assert len(crossed) <= MOST_FILES_OF_A_PROBE, sorted(crossed)


def test_architecture__names_files_that_are_there_and_few_steps() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`([a-z_/]+\.py)`", page)
    assert not [
        name for name in named if not (ROOT / "satstore" / name).exists() and not (ROOT / name).exists()
    ]
    activation, flag = (
        len(re.findall(r"^\d+\. ", part, re.M))
        for part in (page.partition("## One image's activation")[2].partition("## One flag")[0::2])
    )
    assert 0 < activation <= MOST_STEPS_OF_AN_ACTIVATION
    assert 0 < flag <= MOST_FILES_OF_A_PROBE
