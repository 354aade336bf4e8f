"""The progress bar, which shows a run's events."""

import logging
import os
import sys
from typing import TYPE_CHECKING, Self

from satstore.cli.console import PrintingHandler, SafeConsole, print_line
from satstore.runs.events import Event
from satstore.system.text import clean, stage_name

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from satstore.jobs.record import JobRecord

_log = logging.getLogger("satstore")


class Bar:
    """Shows events on stderr: a progress bar on a terminal, a line per message elsewhere."""

    def __init__(self) -> None:
        self._console = SafeConsole(stderr=True, soft_wrap=True)
        self._progress = _make_progress(self._console)
        self._task: TaskID | None = None
        self.record: JobRecord | None = None  # of the command's job, which gets the same events and lines
        self._last_note = ""

    def __enter__(self) -> Self:
        self._handler = PrintingHandler(self.print_above)  # such as that a download starts
        _log.addHandler(self._handler)
        _log.setLevel(logging.INFO)
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        _log.removeHandler(self._handler)

    def listen(self, event: Event) -> None:
        """Show one event."""
        if self.record is not None:
            self.record.listen(event)
        if event.kind == "progress":
            values = "  ".join(f"{name} {value:.3f}" for name, value in event.values.items())
            if self._console.is_terminal:
                self._show_progress(event, clean(f"{event.text}  {values}"))
            else:
                self._note(event, f"{event.text}  {values}".rstrip())
        elif event.is_turn:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = None
        elif event.kind == "warning":
            self.print_above(f"warning: {stage_name(event.stage)}: {event.text}")
        else:
            self.print_above(event.text)

    def _show_progress(self, event: Event, text: str) -> None:
        stage = stage_name(event.stage)
        if self._task is None:
            self._task = self._progress.add_task("", stage=stage)
        self._progress.update(
            self._task, stage=stage, completed=event.done, total=event.total, description=text
        )

    def _note(self, event: Event, text: str) -> None:
        """Print a line for each new text of progress, such as an epoch, in a job, whose log has no bar."""
        if "SATSTORE_JOB" in os.environ and event.text and event.text != self._last_note:
            self.print_above(f"{stage_name(event.stage)}: {text}")
            self._last_note = event.text

    def print(self, text: str) -> None:
        """Print a line of output on stdout; above the bar if stdout is the bar's terminal."""
        if sys.stdout.isatty() and self._console.is_terminal:
            self.print_above(text)
        else:
            print_line(text)

    def print_above(self, text: str) -> None:
        """Print a line on stderr, above the bar, and in the job's log."""
        if self.record is not None:
            self.record.say(text)
        self._console.print(text)


def _make_progress(console: SafeConsole) -> "Progress":
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.fields[stage]:<10}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%", markup=False),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
