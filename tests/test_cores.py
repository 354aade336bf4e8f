"""How many cores are counted: those that this process may use."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from satstore.system.cores import count_cores

QUOTA = "/sys/fs/cgroup/cpu.max"


@pytest.mark.parametrize(
    ("quota", "n_cores"),
    [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("nonsense", 8)],
)
def test_count_cores__keeps_to_the_quota_of_a_container(
    quota: str, n_cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    exists, open_anything = os.path.exists, open

    def open_quota(path: Any, *arguments: Any, **options: Any) -> Any:
        return open_anything(tmp_path / "cpu.max" if path == QUOTA else path, *arguments, **options)

    monkeypatch.setattr("builtins.open", open_quota)
    monkeypatch.setattr(os.path, "exists", lambda path: path == QUOTA or exists(path))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert count_cores() == n_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_count_cores__keeps_to_the_affinity_of_the_process() -> None:
    code = (
        "import os; from satstore.system.cores import count_cores\n"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(count_cores())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"
