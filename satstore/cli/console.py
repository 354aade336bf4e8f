"""What commands print: names, errors and logs come from files, and none of them may command the terminal."""

import codecs
import io
import sys
from typing import Any

from rich.console import Console  # noqa: TID251 - of which the safe one is made
from rich.text import Text

from satstore.errors import printable

TWINS = {
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
"""Marks and bars to what stands for them in ASCII."""


def take_any_encoding() -> None:
    """Let stdout and stderr print what their encoding lacks: marks by their ASCII twins, others by number."""
    codecs.register_error("satstore", _encode_otherwise)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="satstore")


def _encode_otherwise(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(TWINS.get(c, c.encode("ascii", "backslashreplace").decode()) for c in text), error.end


class SafeConsole(Console):
    """A console that prints texts as they are: control characters as such, no markup, no names of emoji."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text to print; every string passes here, also those in tables."""
        return super().render_str(printable(text), **options)


def make_console() -> SafeConsole:
    """Return a console on stdout; where that is no terminal, lines are as long as they need to be."""
    width = None if sys.stdout.isatty() else 10_000
    return SafeConsole(width=width)


def say(text: object, *, is_error: bool = False) -> None:
    """Print a line on stdout, or on stderr."""
    print(printable(str(text)), file=sys.stderr if is_error else sys.stdout, flush=True)
