"""Silent corruption: files are damaged in every way in turn, and no number changes without an error.

Here one file of each kind, in the quick tier in two ways; `make soak` damages all of them.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from damages import DAMAGES, check_damage, flip, one_of_each_kind, truncate
from tiny import results, run_tiny

from satstore.errors import SatstoreError
from satstore.runs.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def expected(run: Run) -> dict[str, Any]:
    return results(run)


Damage = Callable[..., Iterator[bytes | None]]


@pytest.mark.parametrize("damage", [flip, truncate], ids=lambda damage: damage.__name__)
def test_damage__of_each_kind_of_file_is_named_and_changes_no_number(
    run: Run, expected: dict[str, Any], damage: Damage
) -> None:
    """The ways take turns."""
    for path in one_of_each_kind(run)[DAMAGES.index(damage) :: len(DAMAGES)]:
        check_damage(run, path, expected, damage)


@pytest.mark.long
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage__of_any_kind_of_file_is_named_and_changes_no_number(
    run: Run, expected: dict[str, Any], damage: Damage
) -> None:
    files = one_of_each_kind(run)
    assert 30 < len(files) < 60
    for path in files:
        check_damage(run, path, expected, damage)


def test_stages__redo_or_refuse_what_is_damaged(run: Run, expected: dict[str, Any], tmp_path: Path) -> None:
    """Of each kind of file one, damaged: going on either mends it or names it."""
    kinds = ["checkpoint.pt", "metrics.csv", "probe-pool2.csv", "saturation.csv", "commits.jsonl"]
    arrays = ["latents.zarr/pool2/train/0/latent", "analysis.zarr/spectra/eval/0/eigenvalues"]
    for name in [*kinds, *(f"{array}/zarr.json" for array in arrays), f"{arrays[0]}/c/0/0/0/0"]:
        logs = tmp_path / name.replace("/", "-")
        shutil.copytree(run.path.parent.parent, logs)
        copy = Run(logs / "res" / run.path.name)
        content = bytearray((copy.path / name).read_bytes())
        content[len(content) // 2] ^= 4
        (copy.path / name).write_bytes(content)
        error = None
        try:
            assert results(run_tiny(logs)) == expected, name
        except SatstoreError as raised:
            error = str(raised)
        assert error is None or name.split("/")[0] in error, (name, error)
