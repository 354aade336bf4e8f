"""Exports: ``satstore plot`` draws them in another process."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button

from satstore.errors import SatstoreError
from satstore.system.signals import import_environment
from tui.widgets.plain import Static


class ExportScreen(ModalScreen[str]):
    """Asks for a format.

    Parameters
    ----------
    with_table
        Whether there is a table to write too.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "choose('png')", "PNG"),
        Binding("s", "choose('svg')", "SVG"),
        Binding("c", "choose('csv')", "CSV"),
        Binding("left", "app.focus_previous", show=False),
        Binding("right", "app.focus_next", show=False),
        Binding("escape", "dismiss", "Back"),
    ]

    def __init__(self, with_table: bool = True) -> None:
        super().__init__()
        self._with_table = with_table

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        what = "the plot, or the table," if self._with_table else "the plot"
        with Vertical(classes="box"):
            yield Static(Text(f"Write {what} into\n{Path.cwd()}"), classes="text")
            with Horizontal(classes="buttons"):
                yield Button("PNG (p)", id="png", variant="primary")
                yield Button("SVG (s)", id="svg")
                if self._with_table:
                    yield Button("CSV (c)", id="csv")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Take the format."""
        self.dismiss(event.button.id)

    def action_choose(self, kind: str) -> None:
        """Take the format."""
        if kind != "csv" or self._with_table:
            self.dismiss(kind)


def run_command(arguments: Sequence[str]) -> str:
    """Run a command of satstore that only reads, and return what it prints.

    Raises
    ------
    SatstoreError
        If it fails; with what it says.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "satstore", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=import_environment(),
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise SatstoreError(lines[-1].removeprefix("satstore: ") if lines else f"{arguments[0]} failed")
    return done.stdout


def export_plot(app: App[Any], arguments: Sequence[str], path: Path) -> None:
    """Draw a plot to a file, and say where it is; in a worker's thread."""
    app.call_from_thread(app.notify, f"drawing {path.name} …")
    run_command(arguments)
    app.call_from_thread(app.notify, f"wrote {path}")
