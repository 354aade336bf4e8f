"""Printing text safely: names and logs come from files, and must not control the terminal."""

import codecs
import io
import json
import logging
import sys
from collections.abc import Callable, Collection
from typing import Any

from rich.console import Console  # noqa: TID251 - the base of the safe one
from rich.table import Table
from rich.text import Text

from satstore.errors import printable

ASCII_MARKS = {
    **dict.fromkeys("✗✖⚠", "!"),
    **dict.fromkeys("✓✚", "+"),
    **dict.fromkeys("●◆■★", "*"),
    **dict.fromkeys("█▇▆▅▉▊▋▌", "#"),
    **dict.fromkeys("▄▃▂▁▍▎▏·", "."),
    **dict.fromkeys("–−─━╌", "-"),
    **dict.fromkeys("│┊╎", "|"),
    **dict.fromkeys("▶▸→", ">"),
    **dict.fromkeys("▼↓", "v"),
    **dict.fromkeys("▲↑", "^"),
    **{"←": "<", "×": "x", "○": "o", "…": "...", "±": "+-"},
}
"""Mark or bar -> what is printed for it where the encoding lacks it."""


def replace_unencodable() -> None:
    """Let stdout and stderr replace characters that their encoding lacks, by ASCII marks or by escapes."""
    codecs.register_error("satstore", _encode_replacement)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="satstore")


def _encode_replacement(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(
        ASCII_MARKS.get(c, c.encode("ascii", "backslashreplace").decode()) for c in text
    ), error.end


class SafeConsole(Console):
    """A console that prints texts literally: control characters replaced, no markup, no names of emoji."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text to print; rich passes every string through here, also those in tables."""
        return super().render_str(printable(text), **options)


class PrintingHandler(logging.Handler):
    """Passes the messages of log records, from level INFO on, to a function that prints them."""

    def __init__(self, print_message: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self._print_message = print_message

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        self._print_message(record.getMessage())


def make_table(*headings: str, right: Collection[str] = ()) -> Table:
    """Return a table without lines, its columns as wide as their cells, some of them aligned right."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", no_wrap=True)
    return table


def make_console() -> SafeConsole:
    """Return a console on stdout, which doesn't wrap lines unless that is a terminal."""
    return SafeConsole(width=None if sys.stdout.isatty() else 10_000)


def print_line(text: object, *, is_error: bool = False) -> None:
    """Print a line on stdout, or on stderr."""
    print(printable(str(text)), file=sys.stderr if is_error else sys.stdout, flush=True)


def print_json(content: object) -> None:
    """Print values as JSON on stdout."""
    print_line(json.dumps(content, indent=1))
