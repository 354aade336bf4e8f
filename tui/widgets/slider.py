"""A slider over a list of values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget


class Slider(Widget, can_focus=True):
    """A choice among ordered values, moved by the arrows, the mouse, or the keys shown beside it."""

    HELP = (
        "A slider: `left` and `right` move it by a step, `home` and `end` to its ends; so does a click on it."
    )

    DEFAULT_CSS = """
    Slider {
        height: 1;
        width: 1fr;
        padding: 0 1;
        color: $text-muted;
        &:focus { color: $text; background: $surface; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "step(-1)", show=False),
        Binding("right", "step(1)", show=False),
        Binding("home", "step(-100000)", show=False),
        Binding("end", "step(100000)", show=False),
    ]

    place: reactive[int] = reactive(0)

    @dataclass
    class Changed(Message):
        """The slider has moved."""

        slider: "Slider"

    def __init__(
        self, label: str, texts: Sequence[str], place: int = 0, keys: str = "", id: str | None = None
    ) -> None:
        super().__init__(id=id)
        self._label, self._texts, self._keys = label, list(texts), keys
        self.set_reactive(Slider.place, place)

    @property
    def text(self) -> str:
        """The text of its value."""
        return self._texts[self.place] if self._texts else "–"

    def set_texts(self, texts: Sequence[str], place: int) -> None:
        """Take other values."""
        if list(texts) != self._texts or place != self.place:
            self._texts = list(texts)
            self.place = place
            self.refresh()

    def validate_place(self, place: int) -> int:
        """Keep it on the slider."""
        return max(0, min(place, len(self._texts) - 1))

    def watch_place(self) -> None:
        """Post that it moved."""
        self.post_message(self.Changed(self))

    def action_step(self, steps: int) -> None:
        """Move it by so many steps."""
        self.place += steps

    @property
    def _track(self) -> tuple[int, int]:
        start = len(self._label) + 2
        room = self.size.width - start - max(map(len, self._texts), default=1) - len(self._keys) - 4
        return start, max(5, room)

    def render(self) -> Text:
        """Draw it."""
        start, length = self._track
        at = round(self.place * (length - 1) / max(1, len(self._texts) - 1))
        color = "bold" if self.has_focus else ""
        return Text.assemble(
            (self._label.ljust(start), color),
            ("━" * at, "cyan"),
            ("●", "bold cyan"),
            ("─" * (length - 1 - at), "dim"),
            (f"  {self.text}", "bold"),
            (f"  {self._keys}", "dim"),
            no_wrap=True,
        )

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Move it where the mouse is."""
        self.capture_mouse()
        self._move_to(event.x)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Move it with the mouse."""
        if self.app.mouse_captured is self:
            self._move_to(event.x)

    def on_mouse_up(self) -> None:
        """Release the mouse."""
        self.release_mouse()

    def _move_to(self, x: int) -> None:
        start, length = self._track
        share = (x - 1 - start) / max(1, length - 1)  # after the padding
        self.place = round(share * (len(self._texts) - 1))
