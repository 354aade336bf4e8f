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
"""So many jobs that have ended are kept; older ones are removed when a new one starts."""

END_S = 30.0
"""How long what watches a process that has ended may take to write down how; a moment, unless it hangs."""


def start_job(words: Sequence[str], logs_dir: Path, cwd: Path | None = None) -> Job:
    """Start a command in the background, where neither a closed terminal nor a lost connection ends it.

    Parameters
    ----------
    words
        The command's, without ``satstore``.
    cwd
        The folder that it runs in; by default the current one.

    Raises
    ------
    WriteError
        If the logs folder can't be written.
    SatstoreError
        If no process could be started.
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
    while not (path / "process.json").exists():
        if supervisor.poll() is not None or time.monotonic() > deadline:
            silent = f"its process did not begin within {START_S:g} s and was ended"
            silent = silent if _was_killed(supervisor) else "its process ended without a word"
            reason = last_line(path / "log.txt") or silent
            shutil.rmtree(path, ignore_errors=True)
            raise SatstoreError(f"{shlex.join(('satstore', *words))} could not be started: {reason}")
        time.sleep(0.02)
    _reap_later(supervisor)
    return find_job(path.name, logs_dir)


def _was_killed(supervisor: "subprocess.Popen[bytes]") -> bool:
    """Kill a supervisor that still runs, and all that it started; tell whether it did."""
    if supervisor.poll() is not None:
        return False
    with suppress(ProcessLookupError):
        os.killpg(supervisor.pid, signal.SIGKILL)  # it leads a session of its own
    supervisor.wait()
    return True


def _reap_later(process: "subprocess.Popen[bytes]") -> None:
    """Let no zombie stay of a supervisor that ends before we do."""
    threading.Thread(target=process.wait, daemon=True).start()


def claim_job(words: Sequence[str], logs_dir: Path, cwd: Path, *, detached: bool) -> Path:
    """Make the folder of a new job; of several processes that do so at once, each gets its own."""
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
    jobs = list_jobs(logs_dir)
    for job in [job for job in jobs if not job.is_running][N_KEPT:]:
        shutil.rmtree(job.path, ignore_errors=True)
    for job in jobs:
        if not job.is_running:
            _remove_partials(job.path)


def _remove_partials(folder: Path) -> None:
    """Remove the temporary files of a job that has ended, which a disk that refused may have left."""
    with suppress(OSError):
        for path, _ in walk_files(folder):
            if is_partial(path.name):
                path.unlink(missing_ok=True)


def cancel_job(job: Job, grace_s: float = 10.0) -> Job:
    """End a job: ask it to stop, and kill it and all that it started where it does not.

    Parameters
    ----------
    grace_s
        Seconds that it has to stop.

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
        with suppress(SatstoreError):  # somebody goes on with its run already, or that is damaged
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
