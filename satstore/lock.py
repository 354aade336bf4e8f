"""The write lock of an experiment: one process at a time, and everyone can tell which."""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from satstore.errors import LockedError
from satstore.files import write_file


class WriteLock:
    """An OS file lock on a run folder, which dies with its process, and a note of who holds it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._holder_path = folder / ".holder.json"

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold the lock.

        Parameters
        ----------
        name
            What is locked, for the message.

        Raises
        ------
        LockedError
            At once, if another process holds it; the message names it.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self._path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            holder = self.holder() or {}
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("since", time.time())))
            raise LockedError(
                f"{name} is being written by process {holder.get('pid', '?')} on "
                f"{holder.get('host', '?')} since {since}; wait for it, or stop it"
            ) from None
        try:
            holder = {"pid": os.getpid(), "host": platform.node(), "since": time.time()}
            write_file(self._holder_path, json.dumps(holder).encode())
            yield
        finally:
            with suppress(OSError):  # a note that stays names a process that is gone by then
                self._holder_path.unlink(missing_ok=True)
            lock.release()

    def holder(self) -> dict[str, Any] | None:
        """Return pid, host and since (seconds since the epoch) of the holder; None if no process holds it."""
        try:
            holder: dict[str, Any] = json.loads(self._holder_path.read_text())
            on_this_host, pid = holder.get("host") == platform.node(), int(holder["pid"])
            time.localtime(holder["since"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
            return None  # there is none, or what is there is no note of ours
        return None if on_this_host and not _is_alive(pid) else holder


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # alive, and someone else's
    return True
