"""Every way to damage a file of a run, and what must be true of the run then."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tiny import results

from satstore.errors import SatstoreError
from satstore.runs.run import Run
from satstore.runs.verify import Verification
from satstore.stages.probe.latents import check_layer, open_probe_latents

IGNORED = {".lock", "events.jsonl"}
"""Files that no number comes from: nothing is said of them."""


def flip(path: Path, others: list[Path]) -> Iterator[bytes]:
    content = path.read_bytes()
    for at in (0.1, 0.9):
        damaged = bytearray(content)
        damaged[int(len(content) * at)] ^= 4
        yield bytes(damaged)


def truncate(path: Path, others: list[Path]) -> Iterator[bytes]:
    yield path.read_bytes()[: path.stat().st_size // 2]
    yield path.read_bytes()[:-2]  # the last byte of a log is a newline, which nothing is lost with


def empty(path: Path, others: list[Path]) -> Iterator[bytes]:
    yield b""


def delete(path: Path, others: list[Path]) -> Iterator[None]:
    yield None


def swap(path: Path, others: list[Path]) -> Iterator[bytes]:
    """Take the place of a neighbour, the next file of another content."""
    yield next(other.read_bytes() for other in others if other.read_bytes() != path.read_bytes())


DAMAGES = (flip, truncate, empty, delete, swap)


def damageable(run: Run) -> list[Path]:
    """Return the files of a run that numbers come from."""
    return sorted(path for path in run.path.rglob("*") if path.is_file() and path.name not in IGNORED)


def one_of_each_kind(run: Run) -> list[Path]:
    """Return files that differ in more than split and layer."""
    kinds: dict[str, Path] = {}
    for path in damageable(run):
        name = str(path.relative_to(run.path))
        kinds.setdefault(re.sub(r"/(train|eval|0|5)(?=/)", "", name), path)
    return list(kinds.values())


def check_damage(
    run: Run, path: Path, expected: dict[str, Any], damage: Callable[..., Iterator[bytes | None]]
) -> None:
    """Damage a file, check that it is named and that no number changes, and mend it."""
    files = damageable(run)
    i = files.index(path)
    name = str(path.relative_to(run.path))
    whole = path.read_bytes()
    for content in damage(path, files[i + 1 :] + files[:i]):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        try:
            assert is_named(run.path, name), f"verify does not name {name}"
            assert not differs(run.path, expected), f"{name} gives other numbers, and no error"
        finally:
            path.write_bytes(whole)


def is_named(folder: Path, name: str) -> bool:
    """Tell whether verify names a file; of the log, whose lines name others, that it finds anything."""
    try:
        found = [str(finding) for finding in Verification(Run(folder)).findings()]
    except SatstoreError as error:
        found = [str(error)]
    return bool(found) if name == "commits.jsonl" else any(name in line for line in found)


def differs(folder: Path, expected: dict[str, Any]) -> bool:
    """Tell whether all numbers are there to be had, without an error, and are others.

    What a probe checks before it reads the latents is checked here, for every layer; without the fit.
    """
    try:
        run = Run(folder)
        for key in run.manifest.latents:
            latents = open_probe_latents(run, key)
            for layer in run.layers:
                check_layer(latents, layer)
        for table in run.probe_tables():
            for layer in run.layers:
                run.confusion(layer, table)
        return results(run) != expected
    except SatstoreError as error:
        return "\n" in str(error)  # which is no error as ours are
