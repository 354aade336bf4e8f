"""How long people wait: for the first word of a command, and for an end that they, or a dead server, ask for.

    python benchmarks/responsiveness.py [--turns 5] [--json]

Each figure is a median over turns in which it and its peer alternate, with their ratio. The peer of a command
is a Python that does nothing; of Ctrl-C, a Python that does nothing for ever. What is interrupted is at work
on scikit-learn's digits, in the midst of its stage; the seconds are those from the signal to the end of the
process and of all that it started.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from satstore.runs.events import read_events
from satstore.runs.run import Run

CONFIG: dict[str, Any] = {
    "model": "vgg11_XS",
    "dataset": "Digits",
    "batch_size": 64,
    "epoch": 1,
    "optimizer": "adam",
    "augment": False,
    "device": "cpu",
}
SATSTORE = [sys.executable, "-m", "satstore"]
NOTHING = [sys.executable, "-c", "pass"]
FOR_EVER = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
TARGET = ["--config", "config.json", "--run-id", "res"]

Figures = dict[str, float]
Measure = Callable[[], Figures]


def time_command(command: Sequence[str], folder: Path, code: int = 0) -> Figures:
    """Return the seconds that a command takes, by the clock and of CPU time."""
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - started, os.times()
    if done.returncode != code:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": seconds, "cpu_seconds": cpu}


def interrupt(process: "subprocess.Popen[str]") -> Figures:
    """Press Ctrl-C, as a terminal does, and return the seconds until all of the command has ended."""
    started = time.perf_counter()
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    return {"seconds": time.perf_counter() - started}


def start(command: Sequence[str], folder: Path) -> "subprocess.Popen[str]":
    """Start a command in a process group of its own."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes)


def interrupt_nothing(folder: Path) -> Figures:
    """Interrupt a Python that does nothing for ever."""
    with start(FOR_EVER, folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return interrupt(process)


def interrupt_stage(before: Path, *words: str) -> Figures:
    """Interrupt a stage on a copy of a folder, as soon as it has told of its progress."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(before, name, dirs_exist_ok=True))
        with start([*SATSTORE, *words, *TARGET], folder) as process:
            while not is_at_work(folder, words[0]):
                if process.poll() is not None:
                    raise SystemExit(f"{' '.join(words)} ended too soon: {process.communicate()[0]}")
                time.sleep(0.01)
            found = interrupt(process)
        if process.returncode != 130:
            raise SystemExit(f"{' '.join(words)} was over before it was interrupted")
    return found


def is_at_work(folder: Path, stage: str) -> bool:
    """Tell whether a stage has told of its progress."""
    logs = folder.glob("logs/res/*/events.jsonl")
    return any(e.stage == stage and e.kind == "progress" for log in logs for e in read_events(log)[0])


def refuse(folder: Path) -> Figures:
    """Return what a command takes that finds its run locked."""
    [manifest] = folder.glob("logs/res/*/manifest.json")
    with Run(manifest.parent).lock():
        return time_command([*SATSTORE, "probe", "--run", "res"], folder, code=1)


def reach_nothing(is_silent: bool, code: str) -> Figures:
    """Return what it takes to tell that a server refuses connections, or takes them and says nothing."""
    with socket.socket() as listener, tempfile.TemporaryDirectory() as folder:
        listener.bind(("127.0.0.1", 0))
        if is_silent:
            listener.listen()
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_TIMEOUT": "500ms",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
        }
        return time_command([sys.executable, "-c", code], Path(folder))


OPEN = """
import satstore
from satstore.errors import UnreachableError
try:
    satstore.open_latents("s3://bucket/a")
except UnreachableError:
    pass
"""


def make_measures(root: Path) -> Mapping[str, tuple[Measure, Measure]]:
    """Return each figure's measure and its peer's."""
    stages = {name: root / name for name in ("empty", "trained", "extracted")}
    stages["empty"].mkdir()
    (stages["empty"] / "config.json").write_text(json.dumps({**CONFIG, "epoch": 100}))
    for before, after, words in (
        ("empty", "trained", ["train", "--no-latents"]),
        ("trained", "extracted", ["extract"]),
    ):
        shutil.copytree(stages[before], stages[after])
        (stages[after] / "config.json").write_text(json.dumps(CONFIG))
        time_command([*SATSTORE, *words, *TARGET], stages[after])

    def command(*words: str) -> tuple[Measure, Measure]:
        folder = stages["extracted"]
        return lambda: time_command([*SATSTORE, *words], folder), lambda: time_command(NOTHING, folder)

    def ctrl_c(stage: str, *words: str) -> tuple[Measure, Measure]:
        return lambda: interrupt_stage(stages[stage], *words), lambda: interrupt_nothing(root)

    def dead(*, is_silent: bool) -> tuple[Measure, Measure]:
        imports = OPEN.replace('satstore.open_latents("s3://bucket/a")', "satstore.open_latents")
        return lambda: reach_nothing(is_silent, OPEN), lambda: reach_nothing(is_silent, imports)

    return {
        "satstore --help": command("--help"),
        "satstore ls": command("ls"),
        "satstore list models": command("list", "models"),
        "a second process is refused": (
            lambda: refuse(stages["extracted"]),
            lambda: time_command(NOTHING, root),
        ),
        "Ctrl-C in train": ctrl_c("empty", "train", "--no-latents"),
        "Ctrl-C in extract": ctrl_c("trained", "extract"),
        "Ctrl-C in probe": ctrl_c("extracted", "probe"),
        "Ctrl-C in probe --workers 2": ctrl_c("extracted", "probe", "--workers", "2"),
        "an S3 server that refuses": dead(is_silent=False),
        "an S3 server that is silent": dead(is_silent=True),
    }


def measure(turns: int) -> dict[str, dict[str, Figures]]:
    """Return the medians of each figure, of its peer, and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        measures = make_measures(Path(name))
        found: dict[str, list[tuple[Figures, Figures]]] = {what: [] for what in measures}
        for _ in range(turns):
            for what, (own, peer) in measures.items():
                found[what].append((own(), peer()))
    return {what: summarise(pairs) for what, pairs in found.items()}


def summarise(pairs: Sequence[tuple[Figures, Figures]]) -> dict[str, Figures]:
    """Return medians of a figure and its peer, and of the ratio within a turn."""
    units = pairs[0][0].keys()
    return {
        "own": {unit: statistics.median(own[unit] for own, _ in pairs) for unit in units},
        "peer": {unit: statistics.median(peer[unit] for _, peer in pairs) for unit in units},
        "ratio": {
            unit: statistics.median(own[unit] / max(peer[unit], 1e-3) for own, peer in pairs)
            for unit in units
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    found = measure(options.turns)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{'':<30} {'s':>7} {'peer':>7} {'ratio':>7}   {'CPU s':>7} {'peer':>7} {'ratio':>7}")
    for what, figures in found.items():
        cells = [
            f"{figures[kind][unit]:7.2f}" if unit in figures[kind] else f"{'':>7}"
            for unit in ("seconds", "cpu_seconds")
            for kind in ("own", "peer", "ratio")
        ]
        print(f"{what:<30} {' '.join(cells[:3])}   {' '.join(cells[3:])}".rstrip())


if __name__ == "__main__":
    main()
