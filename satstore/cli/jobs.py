"""``satstore jobs``, ``log`` and ``cancel``: list, follow and end jobs."""

import sys
import time
from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import Parameter

from satstore.cli.console import make_console, make_table, print_json, print_line
from satstore.cli.options import Json, LogsDir
from satstore.errors import printable
from satstore.jobs.job import Job, find_job, list_jobs, read_job, tail
from satstore.jobs.start import cancel_job
from satstore.reports.listing.job_text import describe_cpu, describe_gpu, describe_job, describe_memory
from satstore.runs.logs_folder import find_logs_dir
from satstore.system.text import clean, describe_age
from satstore.system.usage import Usage, UsageMeter

JobNumber = Annotated[int, Parameter(help="a job's number, as satstore jobs prints it")]

POLL_S = 0.2
PIECE_BYTES = 2**20


def show_jobs(*, as_json: Json = False, logs_dir: LogsDir = None) -> None:
    """Print the jobs of a logs folder, the newest first."""
    root = find_logs_dir(logs_dir)
    jobs = list_jobs(root)
    usages = measure_jobs(jobs)
    if as_json:
        print_json([summarize_job(job, usages.get(job.number)) for job in jobs])
    elif not jobs:
        print_line(f"no jobs in {root.absolute()}; start one with any stage and --detach")
    else:
        print_jobs(jobs, usages)


def measure_jobs(jobs: list[Job]) -> dict[int, Usage]:
    """Return what each running job uses, by job number."""
    meter, pids = UsageMeter(), {job.number: job.pid for job in jobs if job.is_running and job.pid}
    for pid in pids.values():
        meter.measure(pid)
    if pids:
        time.sleep(POLL_S)  # CPU usage is measured between two readings
    found = {number: meter.measure(pid) for number, pid in pids.items()}
    return {number: usage for number, usage in found.items() if usage is not None}


def summarize_job(job: Job, usage: Usage | None) -> dict[str, Any]:
    """Return a job's entry of ``jobs --json``."""
    content = asdict(job) | {"path": str(job.path), "command": job.command, "duration_s": job.duration_s}
    return content | {"usage": None if usage is None else asdict(usage)}


def print_jobs(jobs: list[Job], usages: dict[int, Usage]) -> None:
    """Print a table of jobs."""
    has_gpu = any(usage.gpu_bytes is not None for usage in usages.values())
    columns = ("job", "state", "progress", "CPU", "memory", *(("GPU",) if has_gpu else ()), "age", "command")
    table = make_table(*columns, right=("job", "CPU", "memory", "GPU", "age"))
    for job in jobs:
        usage = usages.get(job.number)
        used = [describe_cpu(usage), describe_memory(usage), *([describe_gpu(usage)] if has_gpu else [])]
        age = describe_age(time.time() - job.started)
        table.add_row(f"{job.number}", job.state, clean(describe_job(job)), *used, age, clean(job.command))
    make_console().print(table)


def cancel(
    job: JobNumber,
    *,
    grace: Annotated[float, Parameter(help="seconds that it has to stop before it is killed")] = 10.0,
    logs_dir: LogsDir = None,
) -> None:
    """End a job, and print how it ended."""
    ended = cancel_job(find_job(job, find_logs_dir(logs_dir)), grace)
    print_line(f"job {ended.number} is {ended.state}; its command goes on where it was: {ended.command}")


def show_log(
    job: JobNumber,
    *,
    follow: Annotated[
        bool, Parameter(name=["--follow", "-f"], negative="", help="print what comes until it ends")
    ] = False,
    logs_dir: LogsDir = None,
) -> None:
    """Print a job's log; with ``follow``, until the job ends."""
    found = find_job(job, find_logs_dir(logs_dir))
    offset = 0
    try:
        while True:
            has_ended = not found.is_running
            text, offset = tail(found.log_path, PIECE_BYTES, offset)
            sys.stdout.write(printable(text))
            sys.stdout.flush()
            if text:
                continue
            if has_ended or not follow:
                break
            time.sleep(POLL_S)
            found = read_job(found.path) or found
    except KeyboardInterrupt:
        if not found.is_running:
            raise
        print_line(f"\njob {found.number} goes on; end it with: satstore cancel {found.number}")
        return
    if follow and found.state != "done":
        print_line(f"job {found.number}: {found.state}", is_error=True)
