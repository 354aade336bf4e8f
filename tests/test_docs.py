"""What the documentation says is what there is."""

import re
from pathlib import Path

from satstore.config import ExperimentConfig

ROOT = Path(__file__).parents[1]


def test_configuration__documents_every_key() -> None:
    rows = [
        line.split("|")[1]
        for line in (ROOT / "docs/configuration.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    keys = re.findall(r"`(\w+)`", " ".join(rows))
    assert sorted(keys) == sorted(ExperimentConfig.model_fields)


def test_readme__names_only_commands_that_exist() -> None:
    from satstore.cli.app import app

    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"^satstore ([\w-]+)", text, re.MULTILINE)) | set(
        re.findall(r"`satstore ([\w-]+)", text)
    )
    assert named
    assert named <= set(app)
