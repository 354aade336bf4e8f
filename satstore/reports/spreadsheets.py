"""CSV that people open in a spreadsheet: names from outside are text in it, none is a formula that runs.

The tables of a run folder are no such files: satstore reads them back, and their names stay as they are.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*%?|[+-]?(inf|nan)")
FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")
"""How a text begins that spreadsheets take for a formula, or that hides the beginning of one."""
SEPARATOR = re.compile(r"[;\t\r]")
"""What separates cells or rows elsewhere, where a formula could begin after it."""


def as_text_cell(text: str) -> str:
    """Return a text as a cell that no spreadsheet runs: with ``'`` in front of what begins like a formula.

    Numbers stay, negative ones too.
    """
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def write_rows(rows: Iterable[Sequence[object]]) -> str:
    """Return rows of texts and numbers as CSV."""
    cells = [[as_text_cell(value) if isinstance(value, str) else value for value in row] for row in rows]
    is_split = any(isinstance(value, str) and SEPARATOR.search(value) for row in cells for value in row)
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL if is_split else csv.QUOTE_MINIMAL, lineterminator="\n").writerows(
        cells
    )
    return text.getvalue()


def without_formulas(content: bytes) -> bytes:
    """Return the content of a CSV file without formulas; that of one that has none, as it is."""
    text = content.decode("utf-8-sig")
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    is_plain = not any(as_text_cell(cell) != cell or SEPARATOR.search(cell) for row in rows for cell in row)
    return content if is_plain else write_rows(rows).encode()
