"""The end of a growing file."""

from pathlib import Path
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import Log

from satstore.jobs.job import tail
from satstore.system.text import clean

POLL_S = 0.2
PIECE_BYTES = 64 * 1024


class LogView(Log):
    """Follows a file: its end at first, then what is appended, a few times a second at most."""

    HELP = "A log: the arrows, `pageup` and `pagedown` scroll, `end` follows again."

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("k", "scroll_up", show=False),
        Binding("j", "scroll_down", show=False),
    ]

    def __init__(self, id: str | None = None) -> None:
        super().__init__(max_lines=5000, id=id)
        self.paused = False
        self._path: Path | None = None
        self._offset: int | None = None
        self._stamp: tuple[int, int] | None = None
        self._rest = ""

    def on_mount(self) -> None:
        """Poll the file."""
        self.set_interval(POLL_S, self._poll)

    def follow(self, path: Path | None) -> None:
        """Show the end of another file, and what is appended to it."""
        if path != self._path:
            self.clear()
            self._path, self._offset, self._stamp, self._rest = path, None, None, ""
            self._poll()

    def _poll(self) -> None:
        if self._path is None or self.paused or not self.is_on_screen:
            return
        try:
            stat = self._path.stat()
        except OSError:
            return
        stamp = (stat.st_size, stat.st_mtime_ns)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        if self._offset is not None and stat.st_size < self._offset:  # it was started anew
            self.clear()
            self._offset = None
        text, self._offset = tail(self._path, PIECE_BYTES, self._offset)
        *lines, self._rest = (self._rest + text).split("\n")
        self.write_lines([self.describe_line(line) for line in lines])

    def describe_line(self, line: str) -> str:
        """Return what is shown of a line."""
        return clean(line.rsplit("\r", 1)[-1]) if line.strip() else ""
