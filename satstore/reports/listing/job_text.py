"""Texts on jobs, for the terminal app and the commands."""

from collections.abc import Iterable

from satstore.jobs.job import Job, Progress
from satstore.system.text import describe_duration, describe_size, stage_name
from satstore.system.usage import Usage


def describe_job(job: Job) -> str:
    """Return how far a job is, or how it ended."""
    if job.is_running:
        return "starting" if job.progress is None else describe_progress(job.progress)
    if job.state in ("failed", "lost"):
        code = "" if job.exit_code is None else f"exit {job.exit_code}: "
        return f"{code}{job.error}"
    return "" if job.duration_s is None else f"after {describe_duration(job.duration_s)}"


def describe_progress(progress: Progress) -> str:
    """Return how far a stage is, its rate and the time left."""
    parts = [stage_name(progress.stage)]
    if progress.share is not None:
        parts[0] += f" {progress.share:.0%}"
    if progress.rate is not None:
        parts.append(f"{progress.rate:.3g}/s")
    if progress.left_s is not None:
        parts.append(f"{describe_duration(progress.left_s)} left")
    return " · ".join(parts)


def describe_cpu(usage: Usage | None) -> str:
    """Return CPU time per time, where 100% is one core."""
    return "" if usage is None else f"{usage.cpu_percent:.0f}%"


def describe_memory(usage: Usage | None) -> str:
    """Return the memory that a job holds."""
    return "" if usage is None else describe_size(usage.memory_bytes)


def describe_gpu(usage: Usage | None) -> str:
    """Return how busy the GPUs are that a job uses, and what it holds there."""
    if usage is None or not usage.gpu_bytes:
        return ""
    return f"{usage.gpu_percent}% {describe_size(usage.gpu_bytes)}"


def find_job_of(name: str, jobs: Iterable[Job]) -> Job | None:
    """Return the job that works on an experiment, or that did last, by its name; None if none is known."""
    run_id = name.partition("/")[0]
    of_it = [job for job in jobs if job.progress is not None and job.progress.run == name]
    named = [job for job in jobs if {name, run_id} & set(job.words)]
    found = sorted({job.number: job for job in (*of_it, *named)}.values(), key=lambda job: -job.number)
    return next((job for job in found if job.is_running), found[0] if found else None)
