"""The long forms of the tests of reliability, for so many minutes: `make soak`, or `python tests/soak.py 30`.

Each part goes over all its cases, in an order that is drawn, until its share of the time is over, and says
how many it survived. What fails is printed with what repeats it, and ends the soak with exit code 1.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from crashes import Recording, check_failure, check_state, kill_at_random, record
from damages import DAMAGES, check_damage, damageable
from hypothesis import seed, settings
from hypothesis.stateful import run_state_machine_as_test
from limits import EXTRACT_LIMIT, MIB, PROBE_LIMIT, extract_within, probe_within
from run_folder import FEW, RunFolder
from tiny import run_tiny

Case = tuple[str, Callable[[], object]]


def kills(recording: Recording, folder: Path, rng: random.Random) -> Iterator[Case]:
    """Every state that a kill leaves."""
    for n, tree in recording.killed.items():
        yield (
            f"killed before operation {n}",
            lambda n=n, tree=tree: check_state(recording, tree, folder / f"{n}"),
        )


def power_losses(recording: Recording, folder: Path, rng: random.Random) -> Iterator[Case]:
    """Every state that a power loss leaves."""
    for n, tree in recording.lost.items():
        yield f"power lost before {n}", lambda n=n, tree=tree: check_state(recording, tree, folder / f"{n}")


def failures(recording: Recording, folder: Path, rng: random.Random) -> Iterator[Case]:
    """Every operation fails once."""
    for n in range(recording.n_operations):
        yield f"operation {n} failed", lambda n=n: check_failure(recording, n, folder / f"{n}")


def dead_disks(recording: Recording, folder: Path, rng: random.Random) -> Iterator[Case]:
    """From every operation on, all fail."""
    for n in range(recording.n_operations):
        yield (
            f"all failed from operation {n} on",
            lambda n=n: check_failure(recording, n, folder / f"{n}", forever=True),
        )


def random_kills(recording: Recording, folder: Path, rng: random.Random) -> Iterator[Case]:
    """Real processes, each killed at random changes of its files, three times at most."""
    for number in rng.sample(range(10**6), 1000):
        yield (
            f"process killed at random, seed {number}",
            lambda number=number: kill_at_random(recording.expected, folder, number),
        )


def damages(recording: Recording, folder: Path, rng: random.Random) -> Iterator[Case]:
    """Every file of a run, damaged in every way."""
    run = run_tiny(folder.parent / "damaged")
    for path in damageable(run):
        for damage in DAMAGES:
            what = f"{path.relative_to(run.path)}: {damage.__name__}"
            yield what, lambda path=path, damage=damage: check_damage(run, path, recording.expected, damage)


def orders(recording: Recording, folder: Path, rng: random.Random) -> Iterator[Case]:
    """Work, deaths, removals and losses in random orders."""
    many = settings(FEW, stateful_step_count=10)
    for number in rng.sample(range(10**6), 1000):
        drawn = seed(number)(type("RunFolder", (RunFolder,), {}))
        yield (
            f"orders drawn with {number}",
            lambda drawn=drawn: run_state_machine_as_test(drawn, settings=many),
        )


def memory_limits(recording: Recording, folder: Path, rng: random.Random) -> Iterator[Case]:
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


def soak(minutes: float, number: int) -> int:
    """Run all parts, each for its share of the time at most; return how many cases failed.

    Parameters
    ----------
    number
        Seeds what is drawn: the order of the cases, where processes are killed, and random orders of work.
    """
    print(f"what is drawn is drawn again by: python tests/soak.py {minutes:g} {number}", flush=True)
    rng = random.Random(number)
    deadline = time.monotonic() + 60 * minutes
    n_failed = 0
    lines = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "recorded").mkdir()
        recording = record(root / "recorded")
        print(f"recorded a run of {recording.n_operations} operations", flush=True)
        for n_done, (part, cases_of) in enumerate(PARTS.items()):
            until = time.monotonic() + (deadline - time.monotonic()) / (len(PARTS) - n_done)
            cases = list(cases_of(recording, root / "cases", rng))
            rng.shuffle(cases)
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
    _words = argparse.ArgumentParser()
    _words.add_argument("minutes", type=float, nargs="?", default=30)
    _words.add_argument("seed", type=int, nargs="?", default=random.SystemRandom().randrange(10**6))
    _given = _words.parse_args()
    sys.exit(bool(soak(_given.minutes, _given.seed)))
