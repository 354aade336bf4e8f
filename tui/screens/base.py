"""The base of all screens, and what they read of the app."""

from pathlib import Path
from typing import Protocol

from textual.message import Message
from textual.screen import Screen

from satstore.jobs.job import Job
from satstore.reports.listing.reader import Experiment, Snapshot
from satstore.system.usage import Usage

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

    def likely_run(self) -> str | None:
        """Return the name of the run that a new job is likely to be about."""
        return None
