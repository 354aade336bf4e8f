"""A field that is typed into."""

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.widgets import Input


class TextInput(Input):
    """A field whose keys take effect in the order in which they were pressed.

    Textual's own does what ``backspace`` or ``home`` are bound to once they came up to the app, when the
    letters after them may be there already. ``enter`` does the screen's action ``leave_field``.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "screen.leave_field", show=False, priority=True),
    ]

    async def _on_key(self, event: events.Key) -> None:
        for binding in self._bindings.key_to_bindings.get(event.key, ()):
            if not binding.priority and await self.app.run_action(binding.action, self):
                event.stop()
                event.prevent_default()
                return
