"""What tests share: one demo run that many of them read, jobs that wait, and nothing drawn at random."""

import gc
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from command_line import WORKS_S
from filelock import FileLock
from hypothesis import HealthCheck, settings
from sleeper import start_sleeping

from satstore.jobs.job import Job, list_jobs
from satstore.jobs.start import cancel_job
from satstore.runs.run import Run
from satstore.system.memory import resident_bytes

# A busy machine makes any example slow; that is no failure.
SLOW = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeatable", derandomize=True, database=None, max_examples=10, **SLOW)
settings.register_profile("anew", print_blob=True, database=None, **SLOW)
settings.load_profile("repeatable")

# What a shell starts in the background ignores Ctrl-C, and so would all that it starts in turn.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No variable of the machine's user tells tests where logs and data lie.
for _name in ("SATSTORE_LOGS_DIR", "TORCH_DATADIR"):
    os.environ.pop(_name, None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let each test, and the fixtures made for it, draw the same numbers in whatever order tests run."""
    _forget_what_earlier_tests_left()
    seed = int.from_bytes(hashlib.sha256(item.nodeid.encode()).digest()[:4])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries draw from it
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


_held_bytes = 2**30


def _forget_what_earlier_tests_left() -> None:
    """Collect garbage once there is much more of it: memory limits count all that the process holds."""
    global _held_bytes
    if psutil.Process().memory_info().rss > _held_bytes:
        gc.collect()
        _held_bytes = max(2**30, resident_bytes() * 5 // 4)


NO_NETWORK = """
import sys

def forbid(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"):
        address = arguments[-1]
        if event == "socket.getaddrinfo" or not isinstance(address, (str, bytes)):
            raise RuntimeError(f"the network is forbidden here: {event} {arguments}")

sys.addaudithook(forbid)
"""


def run_without_network(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that can open no socket but to processes of its own machine, by their files."""
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=WORKS_S
    )


@pytest.fixture(scope="session")
def shared_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `satstore demo` has run without a network, once for all processes of the tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-demo"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "stdout").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            reached = run_without_network(
                folder, "-c", "import socket; socket.create_connection(('127.0.0.1', 9))"
            )
            assert "the network is forbidden here" in reached.stderr, "nothing is forbidden"
            demo = run_without_network(folder, "-m", "satstore", "demo", "--logs-dir", str(folder / "logs"))
            assert demo.returncode == 0, demo.stderr
            (folder / "stdout").write_text(demo.stdout)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests name as places of latents out of the user's own files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


def state_of(logs: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of each file of a logs folder that tells of a run."""
    files = [path for path in logs.rglob("*") if path.is_file() and ".jobs" not in path.parts]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="session")
def demo_logs(shared_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A logs folder in which `satstore demo` has run, which tests read; who writes takes a copy.

    Beside it, ``stdout`` has what the demo printed.
    """
    logs = tmp_path_factory.mktemp("demo") / "logs"
    shutil.copytree(shared_demo / "logs", logs)
    said = (shared_demo / "stdout").read_text().replace(str(shared_demo / "logs"), str(logs))
    logs.with_name("stdout").write_text(said)
    before = state_of(logs)
    yield logs
    after = state_of(logs)
    changed = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    assert not changed, f"a test has written to the demo's run, which others read: {changed}"


@pytest.fixture
def demo_run(demo_logs: Path) -> Run:
    """The demo's experiment, which tests read."""
    [manifest] = demo_logs.glob("demo/*/manifest.json")
    return Run(manifest.parent)


@pytest.fixture
def demo_copy(demo_logs: Path, tmp_path: Path) -> Path:
    """A copy of the logs folder in which `satstore demo` has run, which the test may write to."""
    return Path(shutil.copytree(demo_logs, tmp_path / "logs"))


@pytest.fixture(scope="session")
def hostile_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A logs folder whose names are markup and formulas, which tests read; see :mod:`hostile_run`."""
    import hostile_run

    logs = tmp_path_factory.mktemp("hostile") / "logs"
    hostile_run.make_runs(logs)
    return logs


@pytest.fixture
def start_sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Job]]:
    """Starts a job that waits; see :mod:`sleeper`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda how: start_sleeping(tmp_path, how)
    for job in list_jobs(tmp_path / "logs"):
        if job.is_running:
            cancel_job(job, grace_s=0.1)
