"""What the documentation says is what there is."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

from satstore.config.experiment import ExperimentConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_configuration__is_what_the_schema_says() -> None:
    script = runpy.run_path(str(ROOT / "docs/make_configuration.py"))
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == script["make_page"](page), "run: python docs/make_configuration.py"
    rows = [line.split("|")[1].strip(" `") for line in page.splitlines() if line.startswith("| `")]
    assert rows == list(ExperimentConfig.model_fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages__links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = page.parent / path if path else page
        assert file.is_file(), target
        heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}
        assert not anchor or anchor in anchors, target


def test_images__are_all_shown() -> None:
    shown = set(re.findall(r"images/([\w-]+\.\w+)", " ".join(page.read_text() for page in PAGES)))
    assert shown == {path.name for path in (ROOT / "docs/images").iterdir()}


def test_architecture__has_all_rooms_in_the_order_of_the_contract() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = page.split("## Rooms")[1].split("\n\n")[2]
    named = re.findall(r"`(\w+)(?:/|\.py)`", re.sub(r"\|[^|]*\|\n", "\n", rooms))
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = [room.strip() for layer in contract["layers"] for room in layer.split("|")]
    assert named == [layer for layer in layers if layer != "__main__"]


def test_architecture__names_only_files_that_exist() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+(?:/|\.py))`", page)
    assert len(named) > 30
    for name in named:
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "satstore")), name


def test_readme__names_only_commands_that_exist() -> None:
    from satstore.cli.app import app

    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"^satstore ([\w-]+)", text, re.MULTILINE)) | set(
        re.findall(r"`satstore ([\w-]+)", text)
    )
    assert named
    assert named <= set(app)
