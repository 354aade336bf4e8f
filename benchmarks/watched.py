"""Running a command in a process of its own, and the most memory that it and its children held."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def run_watched(command: Sequence[object]) -> dict[str, float]:
    """Run a command; return its seconds, and the peak of its resident memory, looked at five times a second.

    Raises
    ------
    SystemExit
        If it fails.
    """
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen([str(word) for word in command])
    while process.poll() is None:
        peak = max(peak, resident_bytes(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed")
    return {"seconds": time.perf_counter() - started, "peak_bytes": peak}


def resident_bytes(pid: int) -> int:
    """Return what a process and those that it started hold; of pages that they share, each has its part."""
    total = 0
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return total
    return total + sum(resident_bytes(int(child)) for child in children)
