"""The screen of jobs: what runs, what ran, and the log of the one under the cursor."""

import time
from typing import ClassVar

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import Footer

from satstore.jobs.job import Job, JobState
from satstore.reports.listing.job_text import describe_cpu, describe_gpu, describe_job, describe_memory
from satstore.reports.listing.reader import Snapshot
from satstore.reports.listing.table_layout import Cell, Column
from satstore.system.text import clean, counted, describe_age
from satstore.system.usage import Usage, has_gpu
from tui.messages import MeasureUsage
from tui.screens.base import AppState, TableScreen
from tui.widgets.log_view import LogView
from tui.widgets.plain import Static
from tui.widgets.table import Table

STATE_STYLES: dict[JobState, tuple[str, str]] = {
    "running": ("▶ running", "bold cyan"),
    "done": ("✓ done", "green"),
    "failed": ("✗ failed", "bold red"),
    "cancelled": ("■ cancelled", "yellow"),
    "lost": ("? lost", "bold red"),
}

BAR_WIDTH = 10


class JobsTable(Table[tuple[Job, Usage | None]]):
    """The table of jobs."""

    HELP = """\
## Jobs

Commands that work on this logs folder, in the background or in a terminal, the newest first. They are
processes of their own: closing this app, or the connection, ends none of them.

- `x` ends a job: it is asked to stop, and killed after 10 s. The same command goes on where it was.
- `l` goes to the log below, `y` copies the command, `n` starts a new one.
- `.` holds what is shown, or goes on.
"""


class JobsScreen(TableScreen):
    """Jobs, and the log of the one under the cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "cancel", "Cancel", tooltip="End this job"),
        Binding("l", "log", "Log", tooltip="Scroll through this job's log"),
        Binding("y", "copy", "Copy", tooltip="Copy this job's command"),
        Binding("escape", "back", "Back"),
    ]

    def __init__(self, app_state: AppState, number: int | None = None) -> None:
        super().__init__(app_state)
        self._wanted = number

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        with Horizontal(id="top"):
            yield Static("jobs", id="title")
            yield Static(id="counts")
        columns = [column for column in COLUMNS if has_gpu() or column.key != "gpu"]
        yield JobsTable(columns, key=lambda row: f"{row[0].number}", clock=describe_job_age)
        yield Static("No jobs yet. Press n to start one, or any stage with --detach.", id="none")
        yield Static(id="detail")
        yield LogView()
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Watch the app's snapshots and measurements."""
        self.watch(self.app, "snapshot", self._show)
        self.watch(self.app, "usages", self._show)
        self.table.focus()

    def on_screen_resume(self) -> None:
        """Measure what the running jobs use."""
        self.request(MeasureUsage(True))

    @on(events.ScreenSuspend)
    @on(events.Unmount)
    def _stop_measuring(self) -> None:
        self.request(MeasureUsage(False))

    def _show(self, _: Snapshot | dict[int, Usage] | None = None) -> None:
        if self.app_state.snapshot is None or self.paused:
            return
        jobs, usages = self.app_state.jobs, self.app_state.usages
        known = {row[0].number: row for row in self.table.rows}
        rows = []
        for job in jobs:
            row, before = (job, usages.get(job.number)), known.get(job.number)
            rows.append(before if before == row and before is not None else row)
        cursor, self._wanted = self._wanted, None
        self.table.show(rows, None if cursor is None else f"{cursor}")
        self.set_class(not jobs, "-empty")
        self._show_counts()
        self._show_current()

    def _show_counts(self) -> None:
        jobs = self.app_state.jobs
        n_running = sum(job.is_running for job in jobs)
        text = Text(f"{counted(len(jobs), 'job')} · ").append(f"{n_running} running", "bold cyan")
        if self.paused:
            text.append("  ").append(" paused ", "reverse")
        self.query_one("#counts", Static).update(text)

    @on(Table.Moved)
    def _show_current(self) -> None:
        row = self.table.current
        log = self.query_one(LogView)
        if row is None:
            self.query_one("#detail", Static).update("")
            log.follow(None)
            return
        job = row[0]
        where = f"process {job.pid}" + ("" if job.is_here else f" on {job.host}")
        text = Text(clean(job.command) + "\n", "bold")
        text.append(
            clean(where if job.is_running else describe_job(job)), f"not bold {STATE_STYLES[job.state][1]}"
        )
        if job.progress is not None and job.progress.run:
            text.append("  ").append(clean(f"{job.progress.run} {job.progress.text}"), "not bold dim")
        self.query_one("#detail", Static).update(text)
        log.follow(job.log_path)

    @property
    def _job(self) -> Job | None:
        row: tuple[Job, Usage | None] | None = self.table.current
        return None if row is None else row[0]

    def likely_run(self) -> str | None:
        """Return the name of the run that the job under the cursor works on."""
        job = self._job
        return job.progress.run if job is not None and job.progress is not None else None

    @on(Table.Opened)
    def action_log(self) -> None:
        """Go to the log."""
        self.query_one(LogView).focus()

    def action_cancel(self) -> None:
        """End the job under the cursor."""
        if self._job is not None:
            self.cancel(self._job)

    def action_copy(self) -> None:
        """Copy the command of the job under the cursor."""
        if self._job is not None:
            self.copy_text(self._job.command)

    def watch_paused(self) -> None:
        """Show whether it is paused, and show what changed meanwhile once it goes on."""
        self._show_counts()
        self.query_one(LogView).paused = self.paused
        self._show()

    def action_back(self) -> None:
        """Leave the log, then the screen."""
        if self.query_one(LogView).has_focus:
            self.table.focus()
        else:
            self.dismiss()


def describe_job_age(row: tuple[Job, Usage | None]) -> str:
    """Return how long ago a job started."""
    return describe_age(time.time() - row[0].started)


def draw_progress(row: tuple[Job, Usage | None]) -> Cell:
    """Return a progress bar of a job's stage, and its description."""
    job = row[0]
    share = job.progress.share if job.progress is not None else None
    if not job.is_running or share is None:
        return ((clean(describe_job(job)), "red" if job.state in ("failed", "lost") else ""),)
    full = round(share * BAR_WIDTH)
    return (("━" * full, "cyan"), ("─" * (BAR_WIDTH - full), "dim"), (f" {clean(describe_job(job))}", ""))


COLUMNS: tuple[Column[tuple[Job, Usage | None]], ...] = (
    Column("job", "job", lambda row: f"{row[0].number}", 4, 6, rank=0, align="right"),
    Column("state", "state", lambda row: (STATE_STYLES[row[0].state],), 11, 11, rank=1),
    Column("progress", "progress", draw_progress, 26, 48, rank=2, n_last=0),
    Column("cpu", "CPU", lambda row: describe_cpu(row[1]), 6, 6, rank=4, align="right"),
    Column("memory", "memory", lambda row: describe_memory(row[1]), 9, 9, rank=5, align="right"),
    Column("gpu", "GPU", lambda row: describe_gpu(row[1]), 14, 14, rank=7, align="right"),
    Column("age", "age", lambda row: describe_job_age(row), 6, 6, rank=6, align="right"),
    Column(
        "command", "command", lambda row: clean(row[0].command), 12, 300, rank=3, n_last=0, stretches=True
    ),
)
"""The columns of the jobs screen."""
