"""The progress bar: a listener of a run's events."""

import logging
import os
import sys
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from satstore.cli.console import SafeConsole, say
from satstore.jobs.record import JobRecord
from satstore.runs.events import Event
from satstore.system.text import clean, stage_name

_log = logging.getLogger("satstore")


class _Announcements(logging.Handler):
    """Shows what the library logs, such as a download that is about to start."""

    def __init__(self, bar: "Bar") -> None:
        super().__init__(logging.INFO)
        self._bar = bar

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        self._bar.say(record.getMessage())


class Bar:
    """Shows events on stderr: a bar that moves on a terminal, a line per message elsewhere.

    Attributes
    ----------
    record
        The job's, which is told the same.
    """

    def __init__(self) -> None:
        self._console = SafeConsole(stderr=True, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.fields[stage]:<10}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%", markup=False),
            TimeElapsedColumn(),
            TextColumn("left", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self.record: JobRecord | None = None
        self._noted = ""

    def __enter__(self) -> Self:
        self._handler = _Announcements(self)
        _log.addHandler(self._handler)
        _log.setLevel(logging.INFO)
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
        _log.removeHandler(self._handler)

    def listen(self, event: Event) -> None:
        """Show one event."""
        if self.record is not None:
            self.record.listen(event)
        if event.kind == "progress" and not self._console.is_terminal:
            self._note(event)
        elif event.kind == "progress":
            if self._task is None:
                self._task = self._progress.add_task("", stage=stage_name(event.stage), total=event.total)
            values = "  ".join(f"{name} {value:.3f}" for name, value in event.values.items())
            self._progress.update(
                self._task,
                stage=stage_name(event.stage),
                completed=event.done,
                total=event.total,
                description=clean(f"{event.text}  {values}"),
            )
        elif event.is_turn:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = None
        elif event.kind == "warning":
            self.say(f"warning: {stage_name(event.stage)}: {event.text}")
        else:
            self.say(event.text)

    def _note(self, event: Event) -> None:
        """Write a line at every new text of a job's progress, such as an epoch: its log is all to see."""
        if "SATSTORE_JOB" in os.environ and event.text and event.text != self._noted:
            values = "".join(f"  {name} {value:.3f}" for name, value in event.values.items())
            self.say(f"{stage_name(event.stage)}: {event.text}{values}")
            self._noted = event.text

    def print(self, text: str) -> None:
        """Print a line of the command's own output on stdout, above the bar where both are one terminal."""
        if sys.stdout.isatty() and self._console.is_terminal:
            self.say(text)
        else:
            say(text)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.record is not None:
            self.record.say(text)
        self._console.print(text)
