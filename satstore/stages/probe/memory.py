"""The memory that a fit may take, and what it took at most."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

from satstore.system.limits import check_memory
from satstore.system.memory import peak_bytes, reset_peak, resident_bytes


@dataclass(frozen=True)
class MemoryBudget:
    """What this process may take while it fits: its resident memory at most.

    ``is_forced``: whether to begin also what the limit, or this machine's memory, does not suffice for.
    """

    limit_bytes: int
    is_forced: bool = False

    def free_bytes(self) -> int:
        """Return what this process may take beside what it holds now."""
        return self.limit_bytes - resident_bytes()

    def check(self, needed_bytes: int, what: str) -> None:
        """Raise MemoryLimitError if a fit is projected to need too much, unless the start is forced."""
        if not self.is_forced:
            check_memory(needed_bytes, self.limit_bytes, what)


class MemoryPeaks:
    """The peaks of memory of fits that run side by side, in this process and those that work for it.

    A process has one peak, which a fit that begins resets: what it was by then counts for those that run.
    ``run_on_workers`` calls a function in every process that works for this one, and returns the results.
    """

    def __init__(self, run_on_workers: Callable[[Callable[[], Any]], Iterable[Any]] = lambda _: ()) -> None:
        self._run_on_workers = run_on_workers
        self._lock = Lock()
        self._running: dict[object, int] = {}

    @contextmanager
    def watch_fit(self) -> Iterator[Callable[[], int]]:
        """Reset the peak; give what returns it: the resident memory of the process that had the most.

        Libraries and the fits beside it are included. Where the system keeps no peak that can be reset, it
        is the highest of that process's life.
        """
        fit = object()
        with self._lock:
            self._update()
            self._running[fit] = 0
            reset_peak()
            self._run_on_workers(reset_peak)
        try:
            yield partial(self._peak, fit)
        finally:
            with self._lock:
                del self._running[fit]

    def _peak(self, fit: object) -> int:
        with self._lock:
            self._update()
            return self._running[fit]

    def _update(self) -> None:
        if self._running:
            peaks = [peak_bytes(), *self._run_on_workers(peak_bytes)]
            self._running = {fit: max(known, *peaks) for fit, known in self._running.items()}
