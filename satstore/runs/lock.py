"""The write lock of an experiment: one process at a time, and everyone can tell which."""

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from satstore.errors import CorruptError, LockedError
from satstore.storage.files import WRITER, write_file
from satstore.storage.safe_files import check_appendable, read_content

LOOK_S = 1.0
"""How long a lock is tried for that seems to be held by nobody."""


class WriteLock:
    """An OS file lock on a run folder, which dies with its process, and a note of who holds it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._holder_path = folder / ".holder.json"

    @contextmanager
    def hold(self, name: str) -> Iterator[list[str]]:
        """Hold the lock, and yield those who held it last and died: by what their temporary files are known.

        Parameters
        ----------
        name
            What is locked, for the message.

        Raises
        ------
        LockedError
            At once, if another process holds it; the message names it.
        CorruptError
            If no lock can be held there: a link, or no file, is in its place.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self._path, timeout=0)
        try:
            check_appendable(self._path)
            try:
                lock.acquire()
            except Timeout:
                if self.holder() is not None:
                    raise
                lock.acquire(timeout=LOOK_S, poll_interval=0.01)  # somebody only looked whether it is held
        except Timeout:
            holder = self.holder() or {}
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("since", time.time())))
            raise LockedError(
                f"{name} is being written by process {holder.get('pid', '?')} on "
                f"{holder.get('host', '?')} since {since}; wait for it, or stop it"
            ) from None
        except OSError as error:
            raise CorruptError(f"{self._path} can't be locked: {error.strerror or error}") from error
        try:
            dead = self._writers()
            for partial in self._path.parent.glob(f".{self._holder_path.name}.*.partial"):
                partial.unlink(missing_ok=True)  # of a note that nobody but a holder writes
            holder = {"pid": os.getpid(), "host": platform.node(), "since": time.time()}
            # Until this holder has cleaned up and gone, whoever comes next must know of the dead ones too.
            note = holder | {"writers": [*dict.fromkeys((*dead, WRITER))]}
            write_file(self._holder_path, json.dumps(note).encode())
            yield dead
        finally:
            with suppress(OSError):  # a note that stays names a process that is gone by then
                self._holder_path.unlink(missing_ok=True)
            lock.release()

    def _note(self) -> dict[str, Any]:
        """Return the note of who holds the lock, or held it and died; empty where there is none of ours."""
        try:
            note = json.loads(read_content(self._holder_path))
        except (OSError, ValueError, RecursionError):
            return {}
        return note if isinstance(note, dict) else {}

    def _writers(self) -> list[str]:
        found = self._note().get("writers")
        return [writer for writer in found if isinstance(writer, str)] if isinstance(found, list) else []

    def holder(self) -> dict[str, Any] | None:
        """Return pid, host and since (seconds since the epoch) of the holder; None if no process holds it.

        A note of a process that is gone is none, nor is one whose lock is free: its pid is another process's
        by now, or it was made on another host.
        """
        holder = self._note()
        try:
            on_this_host, pid = holder.get("host") == platform.node(), int(holder["pid"])
            time.localtime(holder["since"])
        except (OSError, ValueError, LookupError, TypeError, OverflowError):
            return None  # there is none, or what is there is no note of ours
        return None if (on_this_host and not _is_alive(pid)) or self._is_free() else holder

    def _is_free(self) -> bool:
        """Tell whether the lock could be taken; False where that can't be told.

        It is taken for a moment, shared with others who look.
        """
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(file)
        return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # alive, and someone else's
    return True
