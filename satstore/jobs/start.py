"""Starting jobs and ending them."""

import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from satstore.errors import LockedError, SatstoreError
from satstore.jobs.job import START_S, Job, find_job, job_numbers, jobs_dir, last_line, list_jobs
from satstore.runs.run import Run
from satstore.storage.files import WriteError, is_partial, write_file
from satstore.storage.safe_files import check_folders, walk_files
from satstore.system.signals import import_environment

N_KEPT = 200
"""How many jobs that have ended are kept; older ones are removed when a new one starts."""

END_S = 30.0
"""Seconds that a supervisor may take to record the exit code of a process that has ended."""


def start_job(words: Sequence[str], logs_dir: Path, cwd: Path | None = None) -> Job:
    """Start a command in the background; it survives a closed terminal and a lost connection.

    Parameters
    ----------
    words
        The command's words, without ``satstore``.
    cwd
        The folder that it runs in; by default the current one.

    Raises
    ------
    WriteError, SatstoreError
        If the logs folder can't be written; if no process could be started.
    """
    path = claim_job(words, logs_dir, cwd or Path.cwd(), detached=True)
    with (path / "log.txt").open("ab") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-P", "-m", "satstore.jobs.supervisor", str(path.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=import_environment(),
        )
    deadline = time.monotonic() + START_S
    has_begun = (path / "process.json").exists
    while not has_begun() and supervisor.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if not has_begun():
        reason = _kill_supervisor(supervisor)
        reason = last_line(path / "log.txt") or reason
        shutil.rmtree(path, ignore_errors=True)
        raise SatstoreError(f"{shlex.join(('satstore', *words))} could not be started: {reason}")
    threading.Thread(target=supervisor.wait, daemon=True).start()  # so that it leaves no zombie
    return find_job(path.name, logs_dir)


def _kill_supervisor(supervisor: "subprocess.Popen[bytes]") -> str:
    """Kill a supervisor that recorded no process, and all that it started; return why it has to go."""
    has_ended = supervisor.poll() is not None
    with suppress(ProcessLookupError):
        os.killpg(supervisor.pid, signal.SIGKILL)  # it leads a session of its own
    supervisor.wait()
    if has_ended:
        return "its process ended without a word"
    return f"its process did not begin within {START_S:g} s and was ended"


def claim_job(words: Sequence[str], logs_dir: Path, cwd: Path, *, detached: bool) -> Path:
    """Make the folder of a new job; processes that do so at the same time get different ones."""
    folder = jobs_dir(logs_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_folders(logs_dir, folder / "0")
        while True:
            path = folder / f"{max(job_numbers(folder), default=0) + 1}"
            with suppress(FileExistsError):
                path.mkdir()
                break
        content = {"words": list(words), "cwd": str(cwd), "started": time.time(), "host": platform.node()}
        write_file(path / "job.json", json.dumps(content | {"detached": detached}).encode())
        (path / "log.txt").touch()
    except OSError as error:
        if isinstance(error, SatstoreError):
            raise
        raise WriteError(f"{folder} can't be written: {error.strerror or error}") from error
    _prune(logs_dir)
    return path


def _prune(logs_dir: Path) -> None:
    """Remove old jobs that have ended, and of the others temporary files that a failing disk has left."""
    ended = [job for job in list_jobs(logs_dir) if not job.is_running]
    for job in ended[N_KEPT:]:
        shutil.rmtree(job.path, ignore_errors=True)
    for job in ended[:N_KEPT]:
        with suppress(OSError):
            for path, _ in walk_files(job.path):
                if is_partial(path.name):
                    path.unlink(missing_ok=True)


def cancel_job(job: Job, grace_s: float = 10.0) -> Job:
    """Stop a job: send SIGTERM, and after a grace period kill it and all processes that it started.

    Raises
    ------
    LockedError
        If it runs on another host, or is someone else's.
    SatstoreError
        If it has ended already, or is still about to start.
    """
    if not job.is_running:
        raise SatstoreError(f"job {job.number} is not running: it is {job.state}")
    if not job.is_here:
        raise LockedError(f"job {job.number} runs on {job.host}; cancel it there")
    if job.pid is None:
        raise SatstoreError(f"job {job.number} is just starting; cancel it in a moment")
    with suppress(psutil.NoSuchProcess):  # it has just ended
        _end(job, psutil.Process(job.pid), grace_s)
    deadline = time.monotonic() + END_S
    while (found := find_job(job.number, job.path.parent.parent)).is_running and time.monotonic() < deadline:
        time.sleep(0.02)
    if found.progress is not None and found.progress.run and not found.is_running:
        with suppress(SatstoreError):  # another process has resumed the run, or the run is damaged
            Run(job.path.parent.parent / found.progress.run).mark_cancelled()
    return found


def _end(job: Job, process: psutil.Process, grace_s: float) -> None:
    others = process.children(recursive=True)
    write_file(job.path / "cancel", b"", durable=False)
    try:
        process.send_signal(signal.SIGTERM)
    except psutil.AccessDenied:
        (job.path / "cancel").unlink(missing_ok=True)
        owner = process.username()
        raise LockedError(f"job {job.number} is {owner}'s; only they and root can cancel it") from None
    try:
        process.wait(grace_s)
    except psutil.TimeoutExpired:
        for each in (process, *process.children(recursive=True), *others):
            with suppress(psutil.Error):
                each.kill()
