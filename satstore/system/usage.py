"""What a process and all that it started use of the machine."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil


@dataclass(frozen=True)
class Usage:
    """What a process and its descendants use.

    Attributes
    ----------
    cpu_percent
        Since the last measurement; 100 is one core. 0 at the first.
    memory_bytes
        What they hold, shared pages once where the system tells.
    gpu_bytes, gpu_percent
        Memory on GPUs, and how busy the busiest of these is; None where there is no GPU.
    """

    cpu_percent: float
    memory_bytes: int
    gpu_bytes: int | None = None
    gpu_percent: int | None = None


class UsageMeter:
    """Measures processes again and again."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}

    def measure(self, pid: int) -> Usage | None:
        """Return what a process and its descendants use now; None if it is gone."""
        try:
            root = self._known.setdefault(pid, psutil.Process(pid))
            family = [root, *root.children(recursive=True)]
        except psutil.Error:
            self._known.pop(pid, None)
            return None
        family = [self._known.setdefault(process.pid, process) for process in family]
        cpu_percent, memory_bytes = 0.0, 0
        for process in family:
            with suppress(psutil.Error):
                cpu_percent += process.cpu_percent()
                memory_bytes += _memory_bytes(process)
        return Usage(cpu_percent, memory_bytes, *_measure_gpus(p.pid for p in family))

    def forget(self, pids: Iterable[int]) -> None:
        """Forget all processes but these and their descendants that still run."""
        kept = set(pids)
        self._known = {
            pid: process for pid, process in self._known.items() if pid in kept or process.is_running()
        }


def _memory_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.AccessDenied, AttributeError):  # someone else's, or a system that doesn't tell
        return int(process.memory_info().rss)


def _measure_gpus(pids: Iterable[int]) -> tuple[int | None, int | None]:
    library = _gpu_library()
    if library is None:
        return None, None
    ours, held_bytes, busiest = set(pids), 0, None
    with suppress(library.NVMLError):
        for index in range(library.nvmlDeviceGetCount()):
            device = library.nvmlDeviceGetHandleByIndex(index)
            held = [
                p.usedGpuMemory or 0
                for p in library.nvmlDeviceGetComputeRunningProcesses(device)
                if p.pid in ours
            ]
            if held:
                held_bytes += sum(held)
                busiest = max(busiest or 0, int(library.nvmlDeviceGetUtilizationRates(device).gpu))
    return held_bytes, busiest


def has_gpu() -> bool:
    """Tell whether there is a GPU that can be measured."""
    return _gpu_library() is not None


@cache
def _gpu_library() -> Any:
    """Return NVIDIA's library where it and a GPU are there."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, no GPU: each says so in its own way
        return None
    return pynvml
