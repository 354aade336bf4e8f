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
    """Return the memory that is held now; where the system does not tell, the peak."""
    give_back_freed()
    with suppress(OSError, ValueError, IndexError):
        return int((_SELF / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_bytes()


def forget_peak() -> None:
    """Let the peak be what is resident now, on Linux; elsewhere it stays that of the whole process."""
    give_back_freed()
    with suppress(OSError):
        (_SELF / "clear_refs").write_text("5")


def give_back_freed() -> None:
    """Give memory that was freed back to the system, where the C library keeps it for later (glibc).

    After a network was trained that can be more than a gigabyte, which no limit should count as held.
    """
    import ctypes

    with suppress(AttributeError, OSError, TypeError):  # of other C libraries
        ctypes.CDLL(None).malloc_trim(0)
