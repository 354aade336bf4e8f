"""What a crash leaves of the tiny experiment at every operation, and what must be true of it."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command_line import WORKS_S
from faults import Before, Disk, Tree, digest, lay_out
from tiny import results, run_tiny

from satstore.errors import SatstoreError
from satstore.runs.run import Run
from satstore.runs.verify import Verification


@dataclass
class Recording:
    """One undisturbed run, seen by the layer.

    Attributes
    ----------
    expected
        What it found; see :func:`tiny.results`.
    n_operations
        Writes, fsyncs, renames, creations and removals.
    killed, lost
        The different states that a kill, and a power loss, leave, by the number of the operation that was
        about to be done first.
    manifests
        What was committed: every content that the manifest had.
    """

    expected: dict[str, Any] = field(default_factory=dict)
    n_operations: int = 0
    killed: dict[int, Tree] = field(default_factory=dict)
    lost: dict[int, Tree] = field(default_factory=dict)
    manifests: set[bytes] = field(default_factory=set)


def record(root: Path) -> Recording:
    """Run the tiny experiment once, and keep what a crash before each operation would leave."""
    found = Recording()
    seen: dict[str, set[str]] = {"killed": set(), "lost": set()}

    def before(number: int, kind: str, path: Path) -> None:
        for name, tree in (("killed", disk.files()), ("lost", disk.synced_files())):
            if (known := digest(tree)) not in seen[name]:
                seen[name].add(known)
                getattr(found, name)[number] = tree
            found.manifests.update(c for p, c in tree.items() if c and p.endswith("/manifest.json"))

    disk = Disk(root, before)
    with disk.installed():
        run = run_tiny(root)
    there = {path: content for path, content in _read(root).items() if not path.endswith(".lock")}
    assert disk.files() == there, "something wrote past the layer"
    found.n_operations = disk.n_operations
    found.expected = results(run)
    return found


def _read(root: Path) -> Tree:
    paths = sorted(root.rglob("*"))
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in paths}


def check_state(recording: Recording, tree: Tree, folder: Path) -> None:
    """Check one state: what is committed is whole, and going on from it ends as the undisturbed run did."""
    logs = folder / "logs"
    lay_out(tree, logs)
    for path in logs.glob("res/*/manifest.json"):
        assert path.read_bytes() in recording.manifests, "a manifest that was never committed"
        check_whole(Run(path.parent))
    check_end(recording.expected, run_tiny(logs))
    left = [*logs.rglob("*.partial"), *logs.rglob("*.new")]
    assert not left, left
    shutil.rmtree(folder)


def check_whole(run: Run) -> None:
    """Check that all that is committed is there, as it was committed."""
    found = [str(finding) for finding in Verification(run).findings() if finding.is_wrong]
    wrong = [line for line in found if " is not finished " not in line]
    assert not wrong, wrong


def check_end(expected: dict[str, Any], run: Run) -> None:
    """Check that a run found what the undisturbed one did, bit by bit."""
    found = results(run)
    names = found.keys() | expected.keys()
    different = sorted(name for name in names if found.get(name) != expected.get(name))
    shown = {name: (found.get(name), expected.get(name)) for name in different}
    assert not different, f"{different}: {shown}"[:2000]


def fails(n: int, how: int = errno.EIO, *, forever: bool = False) -> Before:
    """Return what lets the n-th operation fail, or all from it on, as a bad disk does."""

    def before(number: int, kind: str, path: Path) -> None:
        if number == n or (forever and number > n):
            raise OSError(how, os.strerror(how), str(path))

    return before


def check_failure(recording: Recording, n: int, folder: Path, *, forever: bool = False) -> bool:
    """Let an operation fail, check the error and what it left, and go on; tell whether there was an error.

    What only tidies up may fail without harm, and so it may pass.
    """
    logs = folder / "logs"
    logs.mkdir(parents=True)
    error = None
    with Disk(logs, fails(n, forever=forever)).installed():
        try:
            run_tiny(logs)
        except SatstoreError as raised:
            error = str(raised)
    if error is not None:
        assert "\n" not in error
        assert str(folder) in error, error
        assert os.strerror(errno.EIO) in error, error
    for path in logs.glob("res/*/manifest.json"):
        json.loads(path.read_text())
        check_whole(Run(path.parent))
    check_end(recording.expected, run_tiny(logs))
    shutil.rmtree(folder)
    return error is not None


def spread(numbers: list[int], n: int) -> Iterator[int]:
    """Choose n of some numbers, evenly, the first and the last among them."""
    for i in range(n):
        yield numbers[round(i * (len(numbers) - 1) / max(1, n - 1))]


KILLED_AT_A_CHANGE = """
import os, pathlib, signal, sys
logs, tests, n_left = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.path.insert(0, tests)
import tiny

def count(event, arguments):
    global n_left
    if event == "open":
        is_change = isinstance(arguments[1], str) and set("wax+") & set(arguments[1])
    else:
        is_change = event in ("os.rename", "os.mkdir", "os.remove")
    if is_change and str(arguments[0]).startswith(logs):
        n_left -= 1
        if n_left == 0:
            os.killpg(0, signal.SIGKILL)

sys.addaudithook(count)
tiny.run_tiny(pathlib.Path(logs))
"""
"""The tiny experiment in a process that is killed before the n-th change of its logs folder."""

N_CHANGES = 600
"""About so many changes it makes."""


def kill_at_random(expected: dict[str, Any], folder: Path, seed: int) -> int:
    """Kill a process of the tiny experiment at random changes of its files, then go on.

    Returns how often it was killed, three times at most.
    """
    logs = folder / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    rng = random.Random(seed)
    n_kills = 0
    while n_kills < 3 and is_killed(logs, at_change=rng.randrange(1, N_CHANGES)):
        n_kills += 1
    check_end(expected, run_tiny(logs))
    return n_kills


def is_killed(logs: Path, at_change: int) -> bool:
    """Run the tiny experiment in a process that is killed at a change; False if it came to its end before."""
    words = [str(logs), str(Path(__file__).parent), str(at_change)]
    process = subprocess.run(
        [sys.executable, "-c", KILLED_AT_A_CHANGE, *words],
        capture_output=True,
        check=False,
        start_new_session=True,
        timeout=WORKS_S,
    )
    assert process.returncode in (0, -signal.SIGKILL), process.stderr.decode()
    return process.returncode != 0
