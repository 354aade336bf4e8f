"""How much memory this process holds."""

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

_SELF = Path("/proc/self")


def peak_bytes() -> int:
    """Return the most memory that was resident since :func:`forget_peak`, or else since the start."""
    with suppress(OSError, ValueError, IndexError):
        [line] = [x for x in (_SELF / "status").read_text().splitlines() if x.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Return the memory that is resident now; where the system does not tell, the peak."""
    with suppress(OSError, ValueError, IndexError):
        return int((_SELF / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_bytes()


def forget_peak() -> None:
    """Let the peak be what is resident now, on Linux; elsewhere it stays that of the whole process."""
    with suppress(OSError):
        (_SELF / "clear_refs").write_text("5")
