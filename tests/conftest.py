"""What tests share: the command line in a subprocess, and one demo run that many of them read."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from satstore.job_control import cancel_job, start_job
from satstore.jobs import Job, list_jobs
from satstore.run import Run

# A busy machine makes any example slow; that is no failure.
settings.register_profile("satstore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("satstore")

# What a shell starts in the background ignores Ctrl-C, and so would all that it starts in turn.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CLEAN = {k: v for k, v in os.environ.items() if k not in ("SATSTORE_LOGS_DIR", "TORCH_DATADIR")}


SMALL: dict[str, Any] = {
    "model": "vgg7_S",
    "dataset": "Digits",
    "epoch": 1,
    "batch_size": 128,
    "optimizer": "sgd",
    "device": "cpu",
    "augment": False,
}
"""A config that trains in seconds."""


def satstore(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "satstore", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=CLEAN, **options
    )


def satstore_until_ctrl_c(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command that goes on for ever until it has printed something, and press Ctrl-C."""
    command = [sys.executable, "-m", "satstore", *map(str, words)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=CLEAN, **pipes) as process:
        assert process.stdout is not None
        try:
            first = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, first + out, err)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SATSTORE_LOGS_DIR", "TORCH_DATADIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def demo_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A logs folder in which `satstore demo` has run."""
    logs = tmp_path_factory.mktemp("demo") / "logs"
    result = satstore("demo", "--logs-dir", logs)
    assert result.returncode == 0, result.stderr
    (logs / "stdout").write_text(result.stdout)
    (logs / "stderr").write_text(result.stderr)
    return logs


@pytest.fixture
def demo_run(demo_logs: Path) -> Run:
    """The demo's experiment."""
    [manifest] = demo_logs.glob("demo/*/manifest.json")
    return Run(manifest.parent)


PLUGIN = '''
import os, signal, time
from satstore.stages.stage import stage

@stage("sleepy", needs=(), pending=lambda run, parameters: ["sleep"])
def sleepy(run, parameters):
    """Sleep in steps."""
    how = run.config.note
    if how == "fail":
        raise ValueError("the bed\\nbroke")
    if how == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    n_steps = 4 if how == "short" else 4000
    for step in range(n_steps):
        run.emit("sleepy", "progress", "asleep", done=step + 1, total=n_steps)
        time.sleep(0.05)
'''


@pytest.fixture
def start_sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Job]]:
    """Starts a job that sleeps: until it is stopped, shortly, deaf to SIGTERM, or fails."""
    (tmp_path / "sleeping.py").write_text(PLUGIN)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def start(how: str) -> Job:
        config = {"plugins": ["sleeping"], "stages": ["sleepy"], "note": how}
        (tmp_path / f"{how}.json").write_text(json.dumps(config))
        words = ["run", "--config", str(tmp_path / f"{how}.json"), "--run-id", how]
        return start_job([*words, "--logs-dir", str(tmp_path / "logs")], tmp_path / "logs", tmp_path)

    yield start
    for job in list_jobs(tmp_path / "logs"):
        if job.is_running:
            cancel_job(job, grace_s=0.1)
