"""How many cores this process may use."""

import os
from contextlib import suppress
from math import ceil
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""What a container may use of the processors: microseconds of each period, and the period, or ``max``."""


def count_cores() -> int:
    """Return the number of cores that this process may use: of its affinity, and of its container's quota."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError, ZeroDivisionError):  # no container, or "max"
        quota, period = map(int, QUOTA.read_text().split())
        n_cores = min(n_cores, max(1, ceil(quota / period)))
    return n_cores
