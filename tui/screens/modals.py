"""Modal screens: a question, a format, an error."""

from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button

from tui.widgets.plain import Static


class ConfirmScreen(ModalScreen[bool]):
    """Asks whether to go on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape", "answer(False)", "No"),
        Binding("left,right", "app.focus_next", show=False),
    ]

    def __init__(self, question: str, yes: str) -> None:
        super().__init__()
        self._question, self._yes = question, yes

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        with Vertical(classes="box"):
            yield Static(Text(self._question), classes="text")
            with Horizontal(classes="buttons"):
                yield Button(f"{self._yes} (y)", variant="error", id="yes")
                yield Button("No (n)", id="no")

    def on_mount(self) -> None:
        """Let enter mean no."""
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Take the answer."""
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        """Take the answer."""
        self.dismiss(answer)


class ExportScreen(ModalScreen[str]):
    """Asks for the format of a plot, or of a table where there is one."""

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


class ErrorScreen(ModalScreen[None]):
    """Shows errors; one that comes while it is open is added to it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q", "dismiss", "Close")]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._lines = [text]

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        with Vertical(classes="box -error"):
            yield Static(Text("\n".join(self._lines)), classes="text")
            with Horizontal(classes="buttons"):
                yield Button("Close", variant="primary")

    def on_mount(self) -> None:
        """Show what came while the screen was laid out."""
        self._show()

    def add(self, text: str) -> None:
        """Add an error."""
        if text not in self._lines:
            self._lines.append(text)
            self._show()

    def _show(self) -> None:
        for widget in self.query(".text").results(Static):  # there is none before it is laid out
            widget.update(Text("\n".join(self._lines)))

    def on_button_pressed(self) -> None:
        """Close it."""
        self.dismiss()
