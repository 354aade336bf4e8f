"""A table of any number of rows, of which only those in sight are drawn.

Textual's own table keeps every cell: 5,000 rows take it 1.5 s at each change of order or filter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from satstore.reports.listing.table_layout import Column, cut, fit_widths

T = TypeVar("T")


class Table(ScrollView, Generic[T], can_focus=True):
    """Rows under a cursor, a header that sorts them, and marks.

    Parameters
    ----------
    columns
        From left to right.
    key
        What tells a row from the others; the cursor stays on its row by it.
    note
        A text that takes the place of a row's cells after the first, where it is not empty.
    clock
        What of a row changes by itself, such as its age.
    """

    HELP = "Move with the arrows, `j` and `k`; `enter` opens; a click on a heading sorts by it."

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--header", "table--cursor", "table--mark", "table--note"}

    DEFAULT_CSS = """
    Table {
        height: 1fr;
        overflow-x: hidden;
        scrollbar-size: 1 1;
        scrollbar-background: $background;
        background: $background;
        &> .table--header { color: $text-muted; text-style: bold; }
        &> .table--cursor { background: $surface-lighten-1; }
        &:focus > .table--cursor { background: $primary-muted; }
        &> .table--mark { color: $accent; text-style: bold; }
        &> .table--note { color: $text-warning; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "move_page(-1)", "Page up", show=False),
        Binding("pagedown", "move_page(1)", "Page down", show=False),
        Binding("home,g", "move(-1000000000)", "First row", show=False),
        Binding("end,G", "move(1000000000)", "Last row", show=False),
        Binding("enter", "open", "Open"),
    ]

    class Moved(Message):
        """The cursor is on another row, or its row changed."""

    class Opened(Message):
        """The row under the cursor is to be opened."""

    @dataclass
    class HeadingClicked(Message):
        """A column's heading was clicked."""

        key: str

    def __init__(
        self,
        columns: Sequence[Column[T]],
        key: Callable[[T], str],
        note: Callable[[T], str] = lambda _: "",
        clock: Callable[[T], object] = lambda _: None,
        id: str | None = None,
    ) -> None:
        super().__init__(id=id)
        self.rows: list[T] = []
        self.cursor_row = 0
        self.marked: frozenset[str] = frozenset()
        self.sorted_by = ("", False)
        self.widths: dict[str, int] = {}
        self._columns = {column.key: column for column in columns}
        self._key, self._note, self._clock = key, note, clock
        self._drawn: dict[int, Strip] = {}
        self._drawn_at: dict[int, object] = {}

    def set_columns(self, columns: Sequence[Column[T]]) -> None:
        """Take other columns."""
        self._columns = {column.key: column for column in columns}
        self._fit()
        self._draw_anew()

    @property
    def row_count(self) -> int:
        """How many rows it has."""
        return len(self.rows)

    @property
    def current(self) -> T | None:
        """The row under the cursor."""
        return self.rows[self.cursor_row] if self.cursor_row < len(self.rows) else None

    @property
    def gap(self) -> int:
        """Blanks after a column."""
        return 1 if self.size.width < 100 else 2

    def show(self, rows: Sequence[T], cursor: str | None = None) -> None:
        """Show these rows; the cursor stays on its row, or goes to the one named.

        One that changed, but for its key, is drawn again alone.
        """
        current = self.current
        key = cursor if cursor is not None else None if current is None else self._key(current)
        keys = [self._key(row) for row in rows]
        same = keys == [self._key(row) for row in self.rows]
        old, self.rows = self.rows, list(rows)
        if same and not self._fit():
            changed = [i for i, (a, b) in enumerate(zip(old, rows, strict=True)) if a is not b]
            for row in changed:
                self.refresh_row(row)
            if cursor is None:
                if self.cursor_row in changed:
                    self.post_message(self.Moved())
                return
        row = keys.index(key) if key in keys else min(self.cursor_row, len(rows) - 1)
        self._fit()
        self._draw_anew()
        self.virtual_size = Size(self.size.width, len(rows) + 1)
        self._go(max(0, row), keep_place=cursor is None)

    def set_marked(self, keys: frozenset[str]) -> None:
        """Mark rows, by their keys."""
        changed, self.marked = self.marked ^ keys, keys
        for index in self._visible():
            if self._key(self.rows[index]) in changed:
                self.refresh_row(index)

    def set_sorted_by(self, key: str, is_reversed: bool) -> None:
        """Say in the header by which column the rows are sorted."""
        self.sorted_by = (key, is_reversed)
        self.refresh()

    def refresh_row(self, index: int) -> None:
        """Draw one row again."""
        self._drawn.pop(index, None)
        y = index - self.scroll_offset.y + 1
        if 1 <= y < self.size.height:
            self.refresh(Region(0, y, self.size.width, 1))

    def refresh_stale(self) -> None:
        """Draw those rows again that read otherwise now, such as their age."""
        for index in self._visible():
            if index in self._drawn and self._clock(self.rows[index]) != self._drawn_at[index]:
                self.refresh_row(index)

    def _visible(self) -> range:
        top = self.scroll_offset.y
        return range(top, min(len(self.rows), top + max(0, self.size.height - 1)))

    def _draw_anew(self) -> None:
        self._drawn.clear()
        self.refresh()

    def _fit(self) -> bool:
        widths = fit_widths(list(self._columns.values()), self.rows, self.size.width - 1, self.gap)
        is_new, self.widths = widths != self.widths, widths
        return is_new

    # Drawing

    def render_line(self, y: int) -> Strip:
        """Return the header, or the row at that height."""
        if y == 0:
            return self._draw_header()
        index = y - 1 + self.scroll_offset.y
        if index >= len(self.rows):
            return Strip.blank(self.size.width, self.rich_style)
        if index not in self._drawn:
            if len(self._drawn) > 1000:
                self._drawn.clear()
            self._drawn[index] = self._draw(index)
            self._drawn_at[index] = self._clock(self.rows[index])
        return self._drawn[index]

    def _draw_header(self) -> Strip:
        style = self.rich_style + self.get_component_rich_style("table--header", partial=True)
        segments = [Segment(" ", style)]
        for key, width in self.widths.items():
            column = self._columns[key]
            arrow = ("▲", "▼")[self.sorted_by[1]] if key == self.sorted_by[0] else ""
            label = column.label[: width - len(arrow)] + arrow
            text = label.rjust(width) if column.align == "right" else label.ljust(width)
            segments.append(Segment(text + " " * self.gap, style))
        return Strip(segments).adjust_cell_length(self.size.width, style)

    def _draw(self, index: int) -> Strip:
        row = self.rows[index]
        style = self.rich_style
        if index == self.cursor_row:
            style += self.get_component_rich_style("table--cursor", partial=True)
        is_marked = self._key(row) in self.marked
        mark = style + self.get_component_rich_style("table--mark", partial=True)
        segments = [Segment("●" if is_marked else " ", mark)]
        note, left = self._note(row), self.size.width - 1
        for key, width in self.widths.items():
            column = self._columns[key]
            for text, cell_style in cut(column, column.cell(row), width):
                segments.append(Segment(text, style + Style.parse(cell_style) if cell_style else style))
            segments.append(Segment(" " * self.gap, style))
            left -= width + self.gap
            if note:
                look = style + self.get_component_rich_style("table--note", partial=True)
                segments.append(Segment(note if len(note) <= left else f"{note[: left - 1]}…", look))
                break
        return Strip(segments).adjust_cell_length(self.size.width, style)

    def notify_style_update(self) -> None:
        """Draw in the colours of another theme, or with the focus gained or lost."""
        super().notify_style_update()
        self._drawn.clear()

    def watch_has_focus(self, _has_focus: bool) -> None:
        """Show whether the cursor moves."""
        super().watch_has_focus(_has_focus)
        self.refresh_row(self.cursor_row)

    def on_resize(self) -> None:
        """Fit the columns to the new width."""
        self._fit()
        self._draw_anew()
        self.virtual_size = Size(self.size.width, len(self.rows) + 1)
        self._go(self.cursor_row, keep_place=True)

    # The cursor

    def _go(self, row: int, keep_place: bool = False) -> None:
        row = max(0, min(row, len(self.rows) - 1))
        before, self.cursor_row = self.cursor_row, row
        self.refresh_row(before)
        self.refresh_row(row)
        top, height = self.scroll_offset.y, max(1, self.size.height - 1)
        if not top <= row < top + height:
            self.scroll_to(
                y=row if row < top else row - height + 1, animate=False, immediate=True, force=True
            )
        if row != before or keep_place:
            self.post_message(self.Moved())

    def action_move(self, rows: int) -> None:
        """Move the cursor by so many rows."""
        self._go(self.cursor_row + rows)

    def action_move_page(self, pages: int) -> None:
        """Move the cursor by so many pages."""
        self._go(self.cursor_row + pages * max(1, self.size.height - 2))

    def action_open(self) -> None:
        """Open the row under the cursor."""
        if self.current is not None:
            self.post_message(self.Opened())

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the row clicked, open it at a double click, or sort by the heading."""
        if event.y == 0:
            x = 1
            for key, width in self.widths.items():
                if x <= event.x < x + width + self.gap:
                    self.post_message(self.HeadingClicked(key))
                x += width + self.gap
            return
        index = event.y - 1 + self.scroll_offset.y
        if index < len(self.rows):
            self._go(index)
            if event.chain == 2:
                self.action_open()
