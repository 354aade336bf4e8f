"""Columns of tables: how wide each is, and how a cell is cut and aligned to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")

DISPENSABLE = 6
"""The rank from which on a column gives way to what the others need."""

Cell = tuple[tuple[str, str], ...]
"""Pieces of a cell, each a text and its style."""


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column of a table."""

    key: str
    label: str  # in the header
    cell: Callable[[T], Cell | str]  # returns what a row has in it
    least: int  # its smallest and its largest width, in characters; where they are equal, no row is measured
    most: int
    rank: int = 0  # columns of high rank are left out first where there is no room for all
    align: Literal["left", "right"] = "left"
    n_last: int | None = None  # characters kept at the end of a text that is too long; -1: all but the first
    stretches: bool = False  # whether it takes the room that is left over


def as_cell(content: Cell | str) -> Cell:
    """Return a cell of pieces."""
    return ((content, ""),) if isinstance(content, str) else content


def cell_text(content: Cell | str) -> str:
    """Return a cell's text."""
    return content if isinstance(content, str) else "".join(text for text, _ in content)


def fit_widths(columns: Sequence[Column[T]], rows: Sequence[T], room: int, gap: int) -> dict[str, int]:
    """Return the widths of the columns that have room, by key, in the columns' order.

    Those of the lowest ranks come in first, at their least; what is left goes to them in the same order,
    up to what their texts need, and then to the one that stretches. One that could be done without comes in
    only where the others have all that they need.
    """
    wanted = {column.key: _need(column, rows) for column in columns}
    chosen: list[Column[T]] = []
    left = spare = room
    for column in sorted(columns, key=lambda c: c.rank):
        if chosen and column.least + gap > (spare if column.rank >= DISPENSABLE else left):
            break
        chosen.append(column)
        left -= column.least + gap
        spare -= (column.least if column.stretches else wanted[column.key]) + gap
    widths = {column.key: column.least for column in columns if column in chosen}
    for column in chosen:
        more = max(0, min(left, wanted[column.key] - column.least))
        widths[column.key] += more
        left -= more
    for column in chosen:
        if column.stretches and left > 0:
            widths[column.key] += left
            break
    return widths


def _need(column: Column[T], rows: Sequence[T]) -> int:
    if column.least == column.most:
        return column.least
    longest = max((len(cell_text(column.cell(row))) for row in rows), default=0)
    return max(column.least, min(column.most, longest))


def cut(column: Column[T], content: Cell | str, width: int) -> Cell:
    """Return a cell as wide as its column."""
    pieces = as_cell(content)
    length = sum(len(text) for text, _ in pieces)
    if length > width and len(pieces) == 1:
        [(text, style)] = pieces
        n_last = width // 2 if column.n_last is None else column.n_last
        return ((shorten(text, width, width - 1 if n_last < 0 else n_last), style),)
    if length > width:
        return _cut_pieces(pieces, width)
    blank = (" " * (width - length), "")
    return (blank, *pieces) if column.align == "right" else (*pieces, blank)


def _cut_pieces(pieces: Cell, width: int) -> Cell:
    kept = []
    for text, style in pieces:
        kept.append((text[:width], style))
        width -= len(kept[-1][0])
    return tuple(kept)


def shorten(text: str, width: int, n_last: int) -> str:
    """Cut a text to a width, out of its middle: the last characters, such as a digest, are kept."""
    if len(text) <= width:
        return text
    n_last = min(n_last, width - 1)
    return text[: width - 1 - n_last] + "…" + text[len(text) - n_last :]
