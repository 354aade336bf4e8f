"""Modal screens: a question, an error."""

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
