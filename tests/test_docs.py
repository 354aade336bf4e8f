"""What the documentation says is what there is."""

import re
import runpy
from pathlib import Path

from satstore.config import ExperimentConfig

ROOT = Path(__file__).parents[1]


def test_configuration__is_what_the_schema_says() -> None:
    script = runpy.run_path(str(ROOT / "docs/make_configuration.py"))
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == script["make_page"](page), "run: python docs/make_configuration.py"
    rows = [line.split("|")[1].strip(" `") for line in page.splitlines() if line.startswith("| `")]
    assert rows == list(ExperimentConfig.model_fields)


def test_readme__names_only_commands_that_exist() -> None:
    from satstore.cli.app import app

    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"^satstore ([\w-]+)", text, re.MULTILINE)) | set(
        re.findall(r"`satstore ([\w-]+)", text)
    )
    assert named
    assert named <= set(app)
