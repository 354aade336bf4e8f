"""What the files of a run folder hold: declared here, checked where they are read, relied on by all others.

Without pandas: lists and the terminal app read tables too.
"""

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, Field

from satstore.errors import printable


@dataclass(frozen=True)
class Kind:
    """What the cells of a column may be: in words, and as a pattern, of texts that are one type to pandas."""

    words: str
    pattern: re.Pattern[str]


TEXT = Kind("a text", re.compile(r".*", re.DOTALL))
NUMBER = Kind(  # whole numbers of more digits are texts to pandas
    "a number or nothing",
    re.compile(r"([+-]?(([0-9]{1,15}|[0-9]*\.[0-9]+|[0-9]+\.)(e[+-]?[0-9]{1,4})?|inf)|nan)?", re.IGNORECASE),
)
COUNT = Kind("a whole number", re.compile(r"[0-9]{1,9}"))
# Where some cells of a column are empty, pandas writes its whole numbers as 5.0.
OPTIONAL_COUNT = Kind("a whole number, or nothing", re.compile(r"([0-9]{1,9}(\.0)?)?"))
POSITION = Kind("a number from 0 to 999, or nothing", re.compile(r"([0-9]{1,3}(\.0)?)?"))
FLAG = Kind("True, False or nothing", re.compile(r"(True|False)?"))


def one_of(*words: str) -> Kind:
    """Return the kind of a column that holds some words alone."""
    return Kind(" or ".join(words), re.compile("|".join(words)))


@dataclass(frozen=True)
class TableFormat:
    """A table's columns.

    Attributes
    ----------
    columns
        Those that all tables of its kind have, imported ones and those of earlier versions too.
    others
        Those that some have.
    rest
        What is in columns that are named nowhere.
    """

    columns: Mapping[str, Kind]
    others: Mapping[str, Kind] = field(default_factory=dict)
    rest: Kind = TEXT

    def kind(self, column: str) -> Kind:
        """Return what a column holds."""
        return self.columns.get(column) or self.others.get(column) or self.rest


PROBES = TableFormat(
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
"""The tables that satstore writes, but for those of probes, which are all of one kind."""


def find_table(name: str) -> TableFormat | None:
    """Return what is known of a table, such as ``metrics`` or ``probe-pool4``; None of a plugin's."""
    return PROBES if name.startswith("probe-") else TABLES.get(name)


def read_cells(name: str, content: bytes) -> tuple[list[str], list[list[str]]]:
    """Return a table's columns, and its rows as text; where something is declared of it, they are that.

    Raises
    ------
    ValueError
        If they are not, saying what was found and what was expected.
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
        kind = table.kind(column)
        for cell in dict.fromkeys(found):  # most are there many times
            if not kind.pattern.fullmatch(cell):
                at = f"row {found.index(cell) + 1}, column {column[:40]!r}"
                raise ValueError(f"has {cell[:40]!r} in {at}; expected {kind.words}")


Number = Annotated[int, Field(ge=0, le=10**30)]


class LayerCosts(BaseModel):
    """What one layer costs."""

    layer: str
    n_parameters: Number
    flops: Number


class CostsFile(BaseModel):
    """What is read of ``computational_info.json``, which has more; see :func:`satstore.stages.flops`."""

    n_epochs: Number
    n_parameters: Number
    flops: Number
    training_flops: Number
    layers: list[LayerCosts]
