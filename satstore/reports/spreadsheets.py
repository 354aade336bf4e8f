"""Write CSV for spreadsheets, in which no name from outside is run as a formula.

The tables of a run folder are not such files: satstore reads them back, so their names are kept unchanged.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*%?|[+-]?(inf|nan)")
FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")
"""The beginnings of texts that spreadsheets run as formulas, or that hide one."""
SEPARATOR = re.compile(r"[;\t\r]")
"""Separators of cells or rows in other dialects, after which a formula could begin."""


def as_text_cell(text: str) -> str:
    """Return a text as a cell that no spreadsheet runs: ``'`` is put before the beginning of a formula.

    Numbers, also negative ones, are unchanged.
    """
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def format_csv(rows: Iterable[Sequence[object]]) -> str:
    """Format rows of texts and numbers as CSV."""
    cells = [[as_text_cell(value) if isinstance(value, str) else value for value in row] for row in rows]
    is_split = any(isinstance(value, str) and SEPARATOR.search(value) for row in cells for value in row)
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL if is_split else csv.QUOTE_MINIMAL, lineterminator="\n").writerows(
        cells
    )
    return text.getvalue()


def without_formulas(content: bytes) -> bytes:
    """Return the content of a CSV file without formulas; unchanged if it has none."""
    text = content.decode("utf-8-sig")
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    is_plain = not any(as_text_cell(cell) != cell or SEPARATOR.search(cell) for row in rows for cell in row)
    return content if is_plain else format_csv(rows).encode()
