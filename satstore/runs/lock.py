"""The write lock of an experiment: one process holds it, and a note names that process."""

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

PROBE_TIMEOUT_S = 1.0
"""How long to wait for a lock without a holder: another process may be testing it."""


class WriteLock:
    """An OS file lock on a run folder, which ends with its process, and a note that names the holder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._holder_path = folder / ".holder.json"

    @contextmanager
    def hold(self, name: str) -> Iterator[list[str]]:
        """Hold the lock, and yield the holders that died without cleaning up.

        They are named by the tag that their temporary files carry; the experiment's name is for messages.
        Raises LockedError at once if another process holds it, naming that process, and CorruptError if the
        lock file can't be used: it is a link, or no file.
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
                lock.acquire(timeout=PROBE_TIMEOUT_S, poll_interval=0.01)
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
                partial.unlink(missing_ok=True)  # only holders write notes, so this one's writer died
            holder = {"pid": os.getpid(), "host": platform.node(), "since": time.time()}
            # If this holder dies too, the next one must still learn of the earlier ones.
            note = holder | {"writers": [*dict.fromkeys((*dead, WRITER))]}
            write_file(self._holder_path, json.dumps(note).encode())
            yield dead
        finally:
            with suppress(OSError):  # a note left behind names a process that has ended: it is ignored
                self._holder_path.unlink(missing_ok=True)
            lock.release()

    def _note(self) -> dict[str, Any]:
        """Read the note of the holder, or of one that died; empty if there is none, or no valid one."""
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

        A note counts only while its process lives and the lock is taken: the pid may be another process's by
        now, and the host another machine.
        """
        holder = self._note()
        try:
            on_this_host, pid = holder.get("host") == platform.node(), int(holder["pid"])
            time.localtime(holder["since"])
        except (OSError, ValueError, LookupError, TypeError, OverflowError):
            return None  # there is no note, or no valid one
        return None if (on_this_host and not _is_alive(pid)) or self._is_free() else holder

    def _is_free(self) -> bool:
        """Return whether the lock could be taken; False if that can't be found out.

        It is taken for a moment, in shared mode, so that processes which test it don't disturb each other.
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
        return True  # it lives, and belongs to another user
    return True
