"""What a wheel holds, and what `import satstore` brings."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import satstore

ROOT = Path(__file__).parents[1]


def test_wheel__holds_both_packages_and_the_configs(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    for source in [*ROOT.glob("satstore/**/*.py"), *ROOT.glob("tui/**/*.py"), *ROOT.glob("tui/**/*.tcss")]:
        assert str(source.relative_to(ROOT)) in names
    for config in ROOT.glob("configs/**/*.json"):
        assert f"satstore/{config.relative_to(ROOT)}" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs"))]

    # What is installed finds its configs without the checkout.
    code = "import satstore.config.grid as c; print(c.__file__); print(c.list_configs()['demo'])"
    found = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            f"import sys; sys.path[:0] = {[str(tmp_path / 'site'), *sys.path]!r}; {code}",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    ).stdout.splitlines()
    folder = f"{tmp_path}/site/satstore"
    assert found == [f"{folder}/config/grid.py", f"{folder}/configs/demo.json"]


def test_public_names__all_load() -> None:
    for name in satstore.__all__:
        assert getattr(satstore, name) is not None


def test_import__loads_nothing_slow() -> None:
    code = (
        "import sys, satstore; assert not {'torch', 'numpy', 'zarr', 'pandas', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


OF_ANOTHER = {"pydantic_core": "pydantic"}
"""Packages that another, which needs them, brings: their versions go in step."""


def test_dependencies__are_all_declared() -> None:
    """What the sources import is in pyproject.toml, so that no other package has to bring it by chance."""
    imported: set[str] = set()
    for path in [*ROOT.glob("satstore/**/*.py"), *ROOT.glob("tui/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    imported -= {*sys.stdlib_module_names, "satstore", "tui"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name != "test"}
    lines = [*project["dependencies"], *chain.from_iterable(extras.values())]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    packages = packages_distributions()
    for module in sorted(imported):
        name = OF_ANOTHER.get(module, module)
        assert {canonicalize_name(found) for found in packages[name]} & declared, module
