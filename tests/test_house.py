"""The order of the house: which module imports which."""

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

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
