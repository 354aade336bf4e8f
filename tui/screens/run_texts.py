"""The tabs of a run's screen that show texts: its files, its advice, its events and its log."""

import time

from rich.console import Group
from rich.padding import Padding
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Log

from satstore.jobs.job import Job
from satstore.reports.listing.job_text import describe_job
from satstore.runs.events import parse_event
from satstore.system.text import clean, stage_name
from tui.screens.run_panes import RunPane
from tui.widgets.log_view import LogView
from tui.widgets.plain import Static


class TextPane(RunPane):
    """A text of the run, such as a file."""

    def compose(self) -> ComposeResult:
        """Lay the tab out."""
        yield Log(id=f"{self.id}-text")

    def show(self, text: str) -> None:
        """Show a text from its beginning; the same text stays where it is scrolled to."""
        log = self.query_one(Log)
        if "\n".join(log.lines).strip() != text.strip():
            log.clear()
            log.auto_scroll = False
            log.write_lines([clean_line(line) for line in text.splitlines()])


class ConfigPane(TextPane):
    """The experiment's config."""

    TITLE = "Config"


class AdvicePane(RunPane):
    """What the curves mean, and what to try: sentences, broken at the width that there is."""

    TITLE = "Advice"

    def compose(self) -> ComposeResult:
        """Lay the tab out."""
        with VerticalScroll():
            yield Static(id="advice-text")

    def show(self, text: str) -> None:
        """Show a text."""
        lines = [clean_line(line) for line in text.splitlines()]
        # What is broken stays as far in as its beginning.
        indented = [Padding(Text(line.lstrip()), (0, 1, 0, len(line) - len(line.lstrip()))) for line in lines]
        self.query_one("#advice-text", Static).update(Group(*indented))


class ManifestPane(TextPane):
    """The run's manifest."""

    TITLE = "Manifest"


def clean_line(line: str) -> str:
    """Return a line that a terminal can show, indented as it was."""
    return " " * (len(line) - len(line.lstrip())) + clean(line)


class EventsView(LogView):
    """The events of a run, a line each."""

    def describe_line(self, line: str) -> str:
        """Return the text of an event."""
        event = parse_event(line)
        if event is None:
            return ""
        at = time.strftime("%m-%d %H:%M:%S", time.localtime(event.time))
        count = f" {event.done}/{event.total}" if event.total else ""
        values = "  ".join(f"{name} {value:.4g}" for name, value in event.values.items())
        return clean(f"{at} {stage_name(event.stage)} {event.kind}{count} {event.text} {values}")


class EventsPane(RunPane):
    """The run's events."""

    TITLE = "Events"

    def compose(self) -> ComposeResult:
        """Lay the tab out."""
        yield EventsView(id="events-text")


class LogPane(RunPane):
    """The log of the run's job."""

    TITLE = "Log"

    def compose(self) -> ComposeResult:
        """Lay the tab out."""
        yield Static(id="log-job")
        yield LogView(id="log-text")

    def show(self, job: Job | None) -> None:
        """Show a job's log."""
        text = "no job of this run is known"
        if job is not None:
            text = f"job {job.number}, {job.state}  {describe_job(job)}  {job.command}"
        self.query_one("#log-job", Static).update(Text(clean(text), "dim", no_wrap=True, overflow="ellipsis"))
        self.query_one(LogView).follow(None if job is None else job.log_path)
