"""Jobs: commands that work on a logs folder, in the background or in someone's terminal.

A job is a folder under ``<logs>/.jobs``, named by its number: ``job.json`` (the command), ``process.json``
(the process that runs it), ``progress.json``, ``log.txt`` and, at the end, ``exit.json``. Everyone who can
read the logs folder sees its jobs.
"""

import json
import os
import platform
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from satstore.errors import NotFoundError, printable
from satstore.storage.safe_files import is_file, open_file, read_content
from satstore.system.signals import STOPPED
from satstore.system.text import clean, printable_content

JobState = Literal["running", "done", "failed", "cancelled", "lost"]
"""``lost``: its process is gone and its exit code was not recorded, as after a power loss."""

START_S = 30.0
"""Seconds after which a job without a recorded process has failed to start."""


@dataclass(frozen=True)
class Progress:
    """The progress of a job's stage.

    ``done`` and ``total`` are None where nothing is counted; ``rate`` is in units of work per second since
    the stage started, ``left_s`` the seconds until it ends at that rate.
    """

    run: str = ""
    stage: str = ""
    done: int | None = None
    total: int | None = None
    text: str = ""
    rate: float | None = None
    left_s: float | None = None

    @property
    def share(self) -> float | None:
        """The share of the stage that is done, in [0, 1]."""
        return self.done / self.total if self.total and self.done is not None else None


@dataclass(frozen=True)
class Job:
    """A command that runs, or has ended.

    Attributes
    ----------
    words
        The command's words, without ``satstore``.
    started, ended
        Seconds since the epoch.
    exit_code
        Negative: the signal that ended it. None while it runs, and where it is not known.
    error
        The last line of the log, if the job failed.
    detached
        Whether it runs in the background, rather than in a terminal.
    """

    number: int
    path: Path
    words: tuple[str, ...]
    state: JobState
    started: float
    ended: float | None
    exit_code: int | None
    error: str
    pid: int | None
    host: str
    detached: bool
    progress: Progress | None

    @property
    def command(self) -> str:
        """The command line."""
        return shlex.join(("satstore", *self.words))

    @property
    def log_path(self) -> Path:
        """The file of its output."""
        return self.path / "log.txt"

    @property
    def is_running(self) -> bool:
        """Whether it still runs."""
        return self.state == "running"

    @property
    def is_here(self) -> bool:
        """Whether it runs on this host."""
        return self.host == platform.node()

    @property
    def duration_s(self) -> float | None:
        """Seconds that it ran, or has been running; None where its end is not known."""
        end = time.time() if self.is_running else self.ended
        return None if end is None else end - self.started


def jobs_dir(logs_dir: Path) -> Path:
    """Return the folder of a logs folder's jobs."""
    return logs_dir / ".jobs"


def list_jobs(logs_dir: Path, known: Mapping[int, Job] | None = None) -> list[Job]:
    """Return the jobs of a logs folder, the newest first.

    Jobs that are `known` to have ended, by number, are not read again.
    """
    jobs = []
    for number in sorted(job_numbers(jobs_dir(logs_dir)), reverse=True):
        before = (known or {}).get(number)
        job = before if before and before.ended is not None else read_job(jobs_dir(logs_dir) / f"{number}")
        if job is not None:
            jobs.append(job)
    return jobs


def job_numbers(folder: Path) -> list[int]:
    """Return the numbers of the jobs in a folder."""
    try:
        return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
    except OSError:
        return []


def find_job(name: str | int, logs_dir: Path) -> Job:
    """Return a job by its number; NotFoundError if there is none."""
    path = jobs_dir(logs_dir) / f"{name}"
    job = read_job(path) if f"{name}".isdecimal() else None
    if job is None:
        raise NotFoundError(f"no job {name!r} in {logs_dir.absolute()}; see: satstore jobs")
    return job


def read_job(path: Path) -> Job | None:
    """Read a job from its folder; return None if it holds no job."""
    try:
        content = _read_json(path / "job.json")
        words = tuple(map(str, content["words"]))
        started, host, detached = content["started"], str(content["host"]), bool(content["detached"])
    except (LookupError, TypeError):
        return None
    if not _is_time(started):
        return None
    process, end = _read_json(path / "process.json"), _read_json(path / "exit.json")
    may_run = not end and _may_run(host, process, started)
    if not end and not may_run:
        end = _read_json(path / "exit.json")  # it may have been written since the first look
    pid = process["pid"] if isinstance(process.get("pid"), int) else None
    code, ended = end.get("code"), end["ended"] if _is_time(end.get("ended")) else None
    is_cancelled = is_file(path / "cancel")
    state: JobState
    if isinstance(code, int):
        state = "done" if code == 0 else "cancelled" if is_cancelled or code in STOPPED else "failed"
    elif may_run:
        state = "running"
    else:
        state = "cancelled" if is_cancelled else "lost"
    error = clean(str(end.get("error") or ""))
    if state in ("failed", "lost") and not error:
        error = last_line(path / "log.txt") or "its process ended without a word"
    progress = _read_progress(path)
    return Job(int(path.name), path, words, state, started, ended, code, error, pid, host, detached, progress)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_content(path))
        return printable_content(content) if isinstance(content, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _is_time(value: Any) -> bool:
    """Tell whether a value can be seconds since the epoch."""
    return isinstance(value, int | float) and abs(value) < 1e11


def _read_progress(path: Path) -> Progress | None:
    try:
        found = Progress(**_read_json(path / "progress.json"))
    except TypeError:  # written by a newer version
        return None
    counts, rates = (found.done, found.total), (found.rate, found.left_s)
    fits = all(isinstance(text, str) for text in (found.run, found.stage, found.text))
    fits &= all(n is None or (isinstance(n, int) and 0 <= n < 2**63) for n in counts)
    fits &= all(n is None or _is_time(n) for n in rates)
    return found if fits and found != Progress() else None


def _may_run(host: str, process: Mapping[str, Any], started: float) -> bool:
    if host != platform.node():
        return True  # processes of another host can't be seen from here
    if not process:
        return time.time() - started < START_S
    # The supervisor ends last: until it has recorded the exit code, the job is not over.
    return _is_there(process) or _is_there(process.get("supervisor"))


def _is_there(process: Any) -> bool:
    try:
        found = psutil.Process(int(process["pid"]))
        # The id may have been reused since.
        is_same = abs(found.create_time() - float(process["created"])) < 1
        return is_same and bool(found.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, LookupError, TypeError, ValueError):
        return False


def last_line(path: Path) -> str:
    """Return the last non-empty line of a log."""
    lines = tail(path, 4096)[0].splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def tail(path: Path, n_bytes: int, offset: int | None = None) -> tuple[str, int]:
    """Return the end of a log, or what follows an offset, and the offset to read from next.

    The text is printable, except for carriage returns, which progress bars need.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = max(0, size - n_bytes) if offset is None or offset > size else max(offset, size - n_bytes)
            file.seek(start)
            content = file.read(n_bytes)
    except OSError:
        return "", offset or 0
    return printable(content.decode(errors="replace"), "\n\t\r"), start + len(content)
