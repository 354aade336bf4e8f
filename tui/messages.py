"""Messages to the app: its threads tell what they found, its screens ask for what only the app can do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from textual.message import Message

from satstore.jobs.job import Job
from satstore.reports.listing.reader import Snapshot
from satstore.system.usage import Usage

# From threads


@dataclass
class SnapshotTaken(Message):
    """The logs folder has changed."""

    snapshot: Snapshot


@dataclass
class UsageMeasured(Message):
    """The running jobs were measured, by number."""

    usages: dict[int, Usage]


# From screens


@dataclass
class OpenRun(Message):
    """Show an experiment, by its folder."""

    path: Path


@dataclass
class CompareRuns(Message):
    """Show several experiments on one axis, by their folders."""

    paths: Sequence[Path]


@dataclass
class OpenJobs(Message):
    """Show the jobs, with the cursor on a job's number."""

    number: int


@dataclass
class StartJob(Message):
    """Start a command of ``satstore`` in the background."""

    arguments: Sequence[str]  # to which the app adds its logs folder
    follow: bool = False  # whether to show the job once it runs


@dataclass
class CancelJob(Message):
    """Ask whether to end a job, and end it."""

    job: Job


@dataclass
class MeasureUsage(Message):
    """Measure what the running jobs use, or stop measuring it."""

    wanted: bool
