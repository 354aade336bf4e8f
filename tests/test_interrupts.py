"""Ctrl-C, once and twice, in every phase: it ends soon, says so, leaves nothing half done, and goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CLEAN, satstore

from satstore.errors import NotFoundError
from satstore.logs import open_run
from satstore.run import Run

SOON_S = 6.0
"""In which it ends, beside other tests; alone, in less than two."""

CONFIG = {
    "model": "vgg11_XS",
    "dataset": "Digits",
    "resolution": 32,
    "batch_size": 64,
    "optimizer": "adam",
    "augment": False,
    "device": "cpu",
    "layers": r"^features\.(0|4|8)$",
}

CASES = [
    ("train", {"workers": 0}, ("--no-latents",), 1),
    ("train", {"workers": 2}, ("--no-latents",), 2),
    ("extract", {"workers": 2}, (), 1),
    ("extract", {"workers": 0}, (), 2),
    ("probe", {}, (), 2),
    ("probe", {}, ("--workers", "2"), 1),
    ("probe", {}, ("--workers", "2"), 2),
]


def write(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps(CONFIG | changes))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A logs folder of a run that was trained, for an epoch."""
    return prepare(tmp_path_factory.mktemp("trained"), "train", "--no-latents")


@pytest.fixture(scope="module")
def extracted(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with its latents."""
    folder = tmp_path_factory.mktemp("extracted")
    shutil.copytree(trained, folder / "logs")
    return prepare(folder, "extract")


def prepare(folder: Path, *words: str) -> Path:
    config = write(folder / "config.json", epoch=1)
    done = satstore(*words, "--config", config, "--run-id", "res", "--logs-dir", folder / "logs")
    assert done.returncode == 0, done.stderr
    return folder / "logs"


def is_in(run: Callable[[], Run], stage: str) -> bool:
    """Tell whether a stage is at work."""
    try:
        return run().status(stage) == "running"
    except NotFoundError:
        return False


@pytest.mark.parametrize(("stage", "config", "flags", "n_times"), CASES)
def test_ctrl_c__ends_soon_leaves_nothing_half_done_and_goes_on(
    stage: str,
    config: dict[str, object],
    flags: tuple[str, ...],
    n_times: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    logs = tmp_path / "logs"
    if stage != "train":
        shutil.copytree(request.getfixturevalue("trained" if stage == "extract" else "extracted"), logs)
    path = write(tmp_path / "config.json", epoch=100 if stage == "train" else 1, **config)
    words = [stage, "--config", str(path), "--run-id", "res", "--logs-dir", str(logs), *flags]

    def run() -> Run:
        return open_run("res", logs)

    process = subprocess.Popen(
        [sys.executable, "-m", "satstore", *words],
        env=CLEAN,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not is_in(run, stage):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # Into the midst of it; a cluster takes two seconds to start.
    time.sleep(2.5 if flags == ("--workers", "2") else 0.5)
    told = time.monotonic()
    for _ in range(n_times):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
        time.sleep(0.1)
    said, _ = process.communicate(timeout=60)

    assert time.monotonic() - told < SOON_S
    assert process.returncode == 130, said
    assert said == "satstore: stopped; the same command goes on where this one was\n"
    assert run().status(stage) == "failed"
    assert run().manifest.stages[stage].error == "stopped"
    assert [p for p in logs.rglob("*") if "partial" in p.name or p.suffix == ".new"] == []
    if stage != "train" and n_times == 2:  # training would take long
        again = satstore(*words)
        assert again.returncode == 0, again.stderr
        assert run().status(stage) == "done"


def test_ctrl_c__while_children_start_is_heard_when_they_have(tmp_path: Path) -> None:
    code = """
import os, signal, subprocess, sys
from satstore.processes import deaf_children
try:
    with deaf_children():
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        os.killpg(0, signal.SIGINT)
    print("not heard")
except KeyboardInterrupt:
    os.killpg(0, signal.SIGCONT)
    child.communicate(b"\\n")
    print("heard; the child ended with", child.returncode)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    assert done.stdout == "heard; the child ended with 0\n", done.stderr


def test_ctrl_c__that_a_library_turns_into_an_error_is_one_all_the_same(tmp_path: Path) -> None:
    """As NumPy does, in the midst of whose import it comes: what is half loaded can't be loaded again."""
    slow = ["import time", "try:", "    time.sleep(2)", "except BaseException as error:"]
    slow.append("    raise ImportError('half') from error")
    (tmp_path / "slow.py").write_text("\n".join(slow))
    code = """
import signal, threading
from satstore import processes
from satstore.cli.command import Terminated, ended_by_signals
for number, kind in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)):
    threading.Timer(0.2, signal.raise_signal, [number]).start()
    try:
        with ended_by_signals():
            import slow
    except KeyboardInterrupt as error:
        print(type(error) is kind, type(error.__cause__).__name__, processes.told_to_stop.is_set())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60
    )
    assert done.stdout == "True ImportError False\n" * 2, done.stderr


def test_ctrl_c__that_a_library_swallows_is_heard_with_the_next_progress(tmp_path: Path) -> None:
    code = """
import signal, threading, time
from pathlib import Path
from satstore.cli.command import ended_by_signals
from satstore.config import ExperimentConfig
from satstore.logs import make_run
run = make_run(Path("logs"), "res", ExperimentConfig())
threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
try:
    with ended_by_signals(), run.stage("train", {}):
        run.emit("train", "progress", done=1)
        try:
            time.sleep(2)
        except BaseException:
            pass
        run.emit("train", "progress", done=2)
except KeyboardInterrupt:
    print(run.manifest.stages["train"].error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60
    )
    assert done.stdout == "stopped\n", done.stderr
