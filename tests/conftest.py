"""What tests share: the command line in a subprocess, and one demo run that many of them read."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from satstore.run import Run

# A busy machine makes any example slow; that is no failure.
settings.register_profile("satstore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("satstore")

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
