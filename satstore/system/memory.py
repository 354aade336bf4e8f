"""The memory that this process holds, and what the machine or its container has left."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
"""The limits of the container that this process runs in, which psutil does not read."""


def peak_bytes() -> int:
    """Return the largest resident memory since :func:`reset_peak`, or else since the process started."""
    with suppress(OSError, IndexError):  # Linux alone; psutil has no peak there
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Return the memory that this process holds now, after freed memory was released."""
    release_freed_memory()
    return int(psutil.Process().memory_info().rss)


def reset_peak() -> None:
    """Set the peak to what is resident now, on Linux; elsewhere it stays that of the whole process."""
    release_freed_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def release_freed_memory() -> None:
    """Return freed memory to the system, where the C library keeps it for later (glibc).

    After training that can be more than a gigabyte, which no limit should count as held.
    """
    import ctypes

    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def available_memory() -> int:
    """Return the bytes that can still be taken without swapping, on this machine and in this container."""
    available = int(psutil.virtual_memory().available)
    with suppress(OSError, KeyError, ValueError):  # no container, or "max", which is no limit
        limit = int((CGROUP / "memory.max").read_text())
        held = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        available = min(available, limit - int(held["anon"]))
    return max(0, available)
