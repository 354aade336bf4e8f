"""The columns of a run's tables: declared here, and checked whenever a table is read.

No pandas here: lists and the terminal app read tables too.
"""

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from satstore.errors import printable


@dataclass(frozen=True)
class CellFormat:
    """The texts that a column's cells may have, described and as a pattern; pandas reads them as one type."""

    description: str
    pattern: re.Pattern[str]


TEXT = CellFormat("a text", re.compile(r".*", re.DOTALL))
NUMBER = CellFormat(  # pandas reads whole numbers of more digits as texts
    "a number or nothing",
    re.compile(r"([+-]?(([0-9]{1,15}|[0-9]*\.[0-9]+|[0-9]+\.)(e[+-]?[0-9]{1,4})?|inf)|nan)?", re.IGNORECASE),
)
COUNT = CellFormat("a whole number", re.compile(r"[0-9]{1,9}"))
# Where some cells of a column are empty, pandas writes its whole numbers as 5.0.
OPTIONAL_COUNT = CellFormat("a whole number, or nothing", re.compile(r"([0-9]{1,9}(\.0)?)?"))
POSITION = CellFormat("a number from 0 to 999, or nothing", re.compile(r"([0-9]{1,3}(\.0)?)?"))
FLAG = CellFormat("True, False or nothing", re.compile(r"(True|False)?"))


def one_of(*names: str) -> CellFormat:
    """Return the format of a column whose cells are one of some names."""
    return CellFormat(" or ".join(names), re.compile("|".join(names)))


@dataclass(frozen=True)
class TableFormat:
    """A table's columns.

    Attributes
    ----------
    columns
        Columns that each such table has, whichever version or program wrote it.
    optional
        Columns that some of them have.
    rest
        The format of columns that are named in neither.
    """

    columns: Mapping[str, CellFormat]
    optional: Mapping[str, CellFormat] = field(default_factory=dict)
    rest: CellFormat = TEXT

    def cell_format(self, column: str) -> CellFormat:
        """Return the format of a column's cells."""
        return self.columns.get(column) or self.optional.get(column) or self.rest


PROBE_TABLE = TableFormat(
    {"layer": TEXT, "eval_accuracy": NUMBER, "converged": FLAG},
    {
        "y": POSITION,
        "x": POSITION,
        "n_features": OPTIONAL_COUNT,
        "train_accuracy": NUMBER,
        "top5": NUMBER,
        "train_loss": NUMBER,
        "objective": NUMBER,
        "n_iter": NUMBER,
        "duration_s": NUMBER,
        "peak_memory_bytes": NUMBER,
        "error": TEXT,
    },
)
TABLES: Mapping[str, TableFormat] = {
    "metrics": TableFormat({"epoch": COUNT}, rest=NUMBER),
    "saturation": TableFormat(
        {
            "delta": NUMBER,
            "definition": one_of("exact", "delve"),
            "epoch": COUNT,
            "split": one_of("train", "eval"),
            "layer": TEXT,
            "index": COUNT,
            "n_features": COUNT,
            "intrinsic_dimension": NUMBER,
            "saturation": NUMBER,
        }
    ),
    "receptive_field": TableFormat(
        {"layer": TEXT, "receptive_field_min": NUMBER, "receptive_field_max": NUMBER},
        {"kind": TEXT, "border": FLAG, "strict_border": FLAG},
    ),
    "projection": TableFormat(
        {
            "mode": one_of("none", "pca", "random"),
            "delta": NUMBER,
            "seed": NUMBER,
            "layers": TEXT,
            "exclude": TEXT,
            "eval_accuracy": NUMBER,
            "eval_loss": NUMBER,
        },
        {"epoch": COUNT, "n_samples": COUNT},
    ),
}
"""The formats of satstore's tables by name; those of probes have many names and one format, PROBE_TABLE."""


def find_table(name: str) -> TableFormat | None:
    """Return the format of a table such as ``metrics`` or ``probe-pool4``; None for a plugin's table."""
    return PROBE_TABLE if name.startswith("probe-") else TABLES.get(name)


def read_cells(name: str, content: bytes) -> tuple[list[str], list[list[str]]]:
    """Return a table's columns, and its rows as text, checked where the table has a declared format.

    Raises ValueError if it has another format, saying what was found and what was expected.
    """
    try:
        header, *rows = filter(None, csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except UnicodeDecodeError as error:
        raise ValueError(f"is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    except csv.Error as error:
        raise ValueError(f"is no table ({error})") from error
    except ValueError:
        raise ValueError("is empty: not even a header is there") from None
    header, rows = [printable(cell) for cell in header], [[printable(cell) for cell in row] for row in rows]
    table = find_table(name)
    if table is not None:
        _check(table, header, rows)
    return header, rows


def _check(table: TableFormat, header: list[str], rows: list[list[str]]) -> None:
    missing = [column for column in table.columns if column not in header]
    if missing:
        raise ValueError(f"has no column {missing[0]!r}; expected {', '.join(table.columns)}")
    twice = [column for column in header if header.count(column) > 1]
    if twice:
        raise ValueError(f"has a column {twice[0]!r} twice")
    for number, cells in enumerate(rows, start=1):
        if len(cells) != len(header):
            raise ValueError(f"has {len(cells)} cells in row {number}; expected {len(header)}")
    for column, found in zip(header, zip(*rows, strict=True), strict=False):
        cell_format = table.cell_format(column)
        for cell in dict.fromkeys(found):  # most cells repeat
            if not cell_format.pattern.fullmatch(cell):
                at = f"row {found.index(cell) + 1}, column {column[:40]!r}"
                raise ValueError(f"has {cell[:40]!r} in {at}; expected {cell_format.description}")
