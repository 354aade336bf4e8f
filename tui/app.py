"""The terminal app: what all its screens share."""

from pathlib import Path
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.reactive import reactive
from textual.screen import Screen

from tui.messages import SnapshotTaken
from tui.reader import ReaderThread, Snapshot
from tui.screens.runs import RunsScreen

POLL_INTERVAL_S = 1.0


class SatstoreApp(App[None]):
    """Shows a logs folder.

    Attributes
    ----------
    snapshot
        What the reader saw last; None until it has read once. Screens watch it.
    """

    TITLE = "satstore"
    CSS_PATH = "app.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - as Textual types it
    BINDINGS: ClassVar[list[BindingType]] = [Binding("q", "quit", "Quit", tooltip="Leave; what runs goes on")]

    snapshot: reactive[Snapshot | None] = reactive(None)

    def __init__(self, logs_dir: Path, poll_interval_s: float = POLL_INTERVAL_S) -> None:
        super().__init__()
        self.logs_dir = logs_dir.absolute()
        self._reader = ReaderThread(self.logs_dir, self._post_snapshot, poll_interval_s)

    def get_default_screen(self) -> Screen[None]:
        """Return the screen that the app starts with."""
        return RunsScreen(self.logs_dir)

    def on_mount(self) -> None:
        """Start to read."""
        self._reader.start()

    def on_unmount(self) -> None:
        """Stop to read."""
        self._reader.stop()

    def _post_snapshot(self, snapshot: Snapshot) -> None:
        self.post_message(SnapshotTaken(snapshot))

    def on_snapshot_taken(self, message: SnapshotTaken) -> None:
        """Hand a snapshot to the screens."""
        self.snapshot = message.snapshot
