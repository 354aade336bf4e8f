"""The long forms of the tests of reliability, for so many minutes: `make soak`, or `python tests/soak.py 30`.

Each part goes over all its cases, in an order of its own, until its share of the time is over, and says how
many it survived. What fails is printed with what repeats it, and ends the soak with exit code 1.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from crashes import Recording, check_end, check_failure, check_state, record
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from limits import EXTRACT_LIMIT, MIB, PROBE_LIMIT, extract_within, probe_within
from test_corruption import DAMAGES, check_damage, damageable
from test_states import RunFolder, TestRunFolder
from tiny import run_tiny

SEED = 6

Case = tuple[str, Callable[[], object]]


def kills(recording: Recording, folder: Path) -> Iterator[Case]:
    """Every state that a kill leaves."""
    for n, tree in recording.killed.items():
        yield (
            f"killed before operation {n}",
            lambda n=n, tree=tree: check_state(recording, tree, folder / f"{n}"),
        )


def power_losses(recording: Recording, folder: Path) -> Iterator[Case]:
    """Every state that a power loss leaves."""
    for n, tree in recording.lost.items():
        yield f"power lost before {n}", lambda n=n, tree=tree: check_state(recording, tree, folder / f"{n}")


def failures(recording: Recording, folder: Path) -> Iterator[Case]:
    """Every operation fails once."""
    for n in range(recording.n_operations):
        yield f"operation {n} failed", lambda n=n: check_failure(recording, n, folder / f"{n}")


def dead_disks(recording: Recording, folder: Path) -> Iterator[Case]:
    """From every operation on, all fail."""
    for n in range(recording.n_operations):
        yield (
            f"all failed from operation {n} on",
            lambda n=n: check_failure(recording, n, folder / f"{n}", forever=True),
        )


def random_kills(recording: Recording, folder: Path) -> Iterator[Case]:
    """Real processes, each killed at random times, three times at most."""
    for seed in range(1000):
        yield (
            f"process killed at random, seed {seed}",
            lambda seed=seed: kill_at_random(recording.expected, folder, seed),
        )


def kill_at_random(expected: dict[str, Any], folder: Path, seed: int) -> int:
    """Kill a process of the tiny experiment at a random time, then go on; return how often it was killed."""
    logs = folder / "logs"
    if logs.exists():
        shutil.rmtree(logs)
    logs.mkdir(parents=True)
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import tiny, pathlib; "
    code += f"print('ready', flush=True); tiny.run_tiny(pathlib.Path({str(logs)!r}))"
    rng = random.Random(seed)
    n_kills = 0
    while n_kills < 3:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 2.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            n_kills += 1
        process.wait()
        process.stdout.close()
        if process.returncode == 0:
            break
    check_end(expected, run_tiny(logs))
    return n_kills


def damages(recording: Recording, folder: Path) -> Iterator[Case]:
    """Every file of a run, damaged in every way."""
    run = run_tiny(folder.parent / "damaged")
    for path in damageable(run):
        for damage in DAMAGES:
            what = f"{path.relative_to(run.path)}: {damage.__name__}"
            yield what, lambda path=path, damage=damage: check_damage(run, path, recording.expected, damage)


def orders(recording: Recording, folder: Path) -> Iterator[Case]:
    """Work, deaths, removals and losses in random orders."""
    many = settings(TestRunFolder.settings, max_examples=3, stateful_step_count=10)
    for number in range(1000):
        yield f"random orders, {number}", lambda: run_state_machine_as_test(RunFolder, settings=many)


def memory_limits(recording: Recording, folder: Path) -> Iterator[Case]:
    """Extraction and a probe within their memory limits, by the system's count, of ten times as much."""
    for stage, limit_bytes in ((probe_within, PROBE_LIMIT), (extract_within, EXTRACT_LIMIT)):
        what = f"{stage.__name__} {limit_bytes // MIB} MiB, of {10 * limit_bytes // MIB} MiB"
        yield what, lambda stage=stage, n=limit_bytes: bool(stage(folder / "memory", 10 * n))


PARTS = {
    "memory limit": memory_limits,
    "kill": kills,
    "power loss": power_losses,
    "failing operation": failures,
    "dead disk": dead_disks,
    "damaged file": damages,
    "three random orders": orders,
    "kill of a real process": random_kills,
}


def soak(minutes: float) -> int:
    """Run all parts, each for its share of the time at most; return how many cases failed."""
    deadline = time.monotonic() + 60 * minutes
    n_failed = 0
    lines = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "recorded").mkdir()
        recording = record(root / "recorded")
        print(f"recorded a run of {recording.n_operations} operations", flush=True)
        for number, (part, cases_of) in enumerate(PARTS.items()):
            until = time.monotonic() + (deadline - time.monotonic()) / (len(PARTS) - number)
            cases = list(cases_of(recording, root / "cases"))
            random.Random(SEED).shuffle(cases)
            survived, told = 0, time.monotonic()
            for what, check in cases:
                if time.monotonic() > until:
                    break
                try:
                    survived += max(1, int(check() or 1))
                except Exception as error:
                    n_failed += 1
                    print(f"FAILED {what}: {type(error).__name__}: {error}", flush=True)
                    shutil.rmtree(root / "cases", ignore_errors=True)
                if time.monotonic() - told > 10:
                    told = time.monotonic()
                    print(f"{part}: {survived} survived of {len(cases)}", flush=True)
            lines.append(f"{part}: {survived} survived, of {len(cases)} that there are")
            print(lines[-1], flush=True)
    print(f"in {minutes:g} minutes at most, {n_failed} failed:", *lines, sep="\n  ")
    return n_failed


if __name__ == "__main__":
    sys.exit(bool(soak(float(sys.argv[1]) if len(sys.argv) > 1 else 30)))
