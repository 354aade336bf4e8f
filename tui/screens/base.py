"""The bases of all screens, and what they read of the app."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive
from textual.screen import Screen

from satstore.jobs.job import Job
from satstore.reports.listing.reader import Experiment, Snapshot
from satstore.system.usage import Usage
from tui.messages import CancelJob
from tui.widgets.table import Table

WRITING_ACTIONS = frozenset({"new_job", "start", "cancel", "export", "demo"})
"""The actions that ``--read-only`` forbids: they start, end or write something."""


class AppState(Protocol):
    """What screens read of the app."""

    logs_dir: Path
    read_only: bool  # nothing may be started, ended or written

    @property
    def snapshot(self) -> Snapshot | None:
        """The logs folder as it was read last; None until it is read. Screens watch it."""

    @property
    def usages(self) -> dict[int, Usage]:
        """What the running jobs use, by number, while it is measured. Screens watch it."""

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """The experiments of the last snapshot."""

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs of the last snapshot, the newest first."""


class AppScreen(Screen[None]):
    """A screen of the app: it shows the app's state, and asks the app with messages for all else."""

    def __init__(self, app_state: AppState) -> None:
        super().__init__()
        self.app_state = app_state

    def request(self, message: Message) -> None:
        """Have the app handle a message before the next key: a posted one waits behind keys typed ahead."""
        self.app.call_next(self.app._dispatch_message, message)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Grey out what ``--read-only`` forbids."""
        return None if action in WRITING_ACTIONS and self.app_state.read_only else True

    def cancel(self, job: Job) -> None:
        """Have the app end a job, or say that it has ended."""
        if job.is_running:
            self.request(CancelJob(job))
        else:
            self.notify(f"job {job.number} is not running: it is {job.state}", severity="warning")

    def copy_command(self, arguments: Sequence[str]) -> None:
        """Copy a command of satstore on this logs folder to the clipboard, and show it."""
        self.copy_text(shlex.join(["satstore", *arguments, "--logs-dir", str(self.app_state.logs_dir)]))

    def copy_text(self, text: str) -> None:
        """Copy a text to the clipboard, and show it."""
        self.app.copy_to_clipboard(text)
        self.notify(f"copied: {text}")

    def likely_run(self) -> str | None:
        """Return the name of the run that a new job is likely to be about."""
        return None


class TableScreen(AppScreen):
    """A screen with one table, which follows the logs folder unless it is paused."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "full_stop", "pause", "Pause", key_display=".", show=False, tooltip="Hold what is shown, or go on"
        )
    ]

    paused: reactive[bool] = reactive(False, init=False)

    @property
    def table(self) -> Table[Any]:
        """The table."""
        return self.query_one(Table)

    def on_mount(self) -> None:
        """Draw what changes by itself, such as ages, every second."""
        self.set_interval(1, self._draw_stale)

    def _draw_stale(self) -> None:
        if not self.paused and self.is_current:
            self.table.refresh_stale()

    def action_pause(self) -> None:
        """Hold what is shown, or go on."""
        self.paused = not self.paused
