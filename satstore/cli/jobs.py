"""Commands about jobs: list, follow and cancel them."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from satstore.cli.console import make_console, say
from satstore.errors import printable
from satstore.jobs.job import Job, find_job, list_jobs, read_job, tail
from satstore.jobs.start import cancel_job
from satstore.reports.listing.job_text import describe_cpu, describe_gpu, describe_job, describe_memory
from satstore.runs.logs_folder import find_logs_dir
from satstore.system.text import clean, describe_age
from satstore.system.usage import Usage, UsageMeter

POLL_S = 0.2
PIECE_BYTES = 2**20


def show_jobs(logs_dir: Path | None, as_json: bool) -> None:
    """Print the jobs of a logs folder, the newest first."""
    root = find_logs_dir(logs_dir)
    jobs = list_jobs(root)
    usages = measure_jobs(jobs)
    if as_json:
        print(json.dumps([as_record(job, usages.get(job.number)) for job in jobs], indent=1))  # noqa: T201
    elif not jobs:
        say(f"no jobs in {root.absolute()}; start one with any stage and --detach")
    else:
        make_console().print(make_table(jobs, usages))


def measure_jobs(jobs: list[Job]) -> dict[int, Usage]:
    """Return what the running jobs use, by number."""
    meter, running = UsageMeter(), [job for job in jobs if job.is_running and job.pid]
    for job in running:
        meter.measure(job.pid or 0)
    if running:
        time.sleep(0.2)  # CPU time is counted between two looks
    found = {job.number: meter.measure(job.pid or 0) for job in running}
    return {number: usage for number, usage in found.items() if usage is not None}


def as_record(job: Job, usage: Usage | None) -> dict[str, Any]:
    """Return a job's entry of ``jobs --json``."""
    content = asdict(job) | {"path": str(job.path), "command": job.command, "duration_s": job.duration_s}
    return content | {"usage": None if usage is None else asdict(usage)}


def make_table(jobs: list[Job], usages: dict[int, Usage]) -> Table:
    """Return the table of jobs."""
    table = Table(box=None, pad_edge=False)
    has_gpu = any(usage.gpu_bytes is not None for usage in usages.values())
    columns = ("job", "state", "progress", "CPU", "memory", *(("GPU",) if has_gpu else ()), "age", "command")
    for name in columns:
        is_number = name in ("job", "CPU", "memory", "GPU", "age")
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    for job in jobs:
        usage = usages.get(job.number)
        cells = [
            f"{job.number}",
            job.state,
            clean(describe_job(job)),
            describe_cpu(usage),
            describe_memory(usage),
        ]
        cells += [describe_gpu(usage)] if has_gpu else []
        table.add_row(*cells, describe_age(time.time() - job.started), clean(job.command))
    return table


def cancel_one(number: int, grace_s: float, logs_dir: Path | None) -> None:
    """End a job, and say how it ended."""
    job = cancel_job(find_job(number, find_logs_dir(logs_dir)), grace_s)
    say(f"job {job.number} is {job.state}; its command goes on where it was: {job.command}")


def show_log(number: int, follow: bool, logs_dir: Path | None) -> None:
    """Print a job's log, and go on until it ends where that is wanted."""
    job = find_job(number, find_logs_dir(logs_dir))
    offset = 0
    try:
        while True:
            is_over = not job.is_running
            text, offset = tail(job.log_path, PIECE_BYTES, offset)
            sys.stdout.write(printable(text))
            sys.stdout.flush()
            if text:
                continue
            if is_over or not follow:
                break
            time.sleep(POLL_S)
            job = read_job(job.path) or job
    except KeyboardInterrupt:
        if not job.is_running:
            raise
        say(f"\njob {job.number} goes on; end it with: satstore cancel {job.number}")
        return
    if follow and job.state != "done":
        say(f"job {job.number}: {job.state}", is_error=True)
