"""What lists show of an experiment, column by column, in the terminal app and in ``satstore status``."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.text import Text

from satstore.reports.colors import SATURATION_LIGHT
from satstore.reports.listing.reader import Experiment
from satstore.reports.listing.table_layout import Cell, Column, cell_text
from satstore.runs.manifest import STAGE_KEYS, StageStatus
from satstore.system.text import MARKS, clean, counted, describe_age, describe_size

STYLES: Mapping[StageStatus, str] = {
    "done": "green",
    "running": "bold cyan",
    "failed": "bold red",
    "cancelled": "yellow",
    "missing": "dim",
}

BLOCKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 16


def describe_epoch(experiment: Experiment) -> str:
    """Return how far training is."""
    return "" if experiment.epochs is None else f"{experiment.epochs_done}/{experiment.epochs}"


def draw_stages(experiment: Experiment) -> Cell:
    """Return a mark per stage, and how far the one that runs is."""
    marks = tuple((MARKS[status], STYLES[status]) for status in experiment.stages.values())
    if experiment.progress is None:
        return marks
    return (*marks, (f" {experiment.progress:.0%}", STYLES["running"]))


def draw_spark(values: Iterable[float | None], width: int = SPARK_WIDTH) -> str:
    """Return a line of blocks for shares in [0, 1], means of neighbours where there are more than fit."""
    found = list(values)
    n_cells = min(width, len(found))
    line = ""
    for cell in range(n_cells):
        share = _mean(found[cell * len(found) // n_cells : (cell + 1) * len(found) // n_cells])
        line += " " if share is None else BLOCKS[max(0, min(7, int(share * 8)))]
    return line


def describe_experiment_age(experiment: Experiment) -> str:
    """Return an experiment's age; nothing where it isn't known."""
    return "" if experiment.created is None else describe_age(time.time() - experiment.created)


def _number(value: float | None, form: str = "{}") -> str:
    return "" if value is None else form.format(value)


COLUMNS: tuple[Column[Experiment], ...] = (
    Column("run", "run", lambda e: clean(e.run_id), 8, 40, rank=0),
    Column("model", "model", lambda e: clean(e.model), 8, 28, rank=1),
    Column("dataset", "dataset", lambda e: clean(e.dataset), 7, 20, rank=2),
    Column("px", "px", lambda e: _number(e.resolution), 4, 4, rank=5, align="right"),
    Column("epoch", "epoch", describe_epoch, 7, 7, rank=4, align="right"),
    Column("accuracy", "acc", lambda e: _number(e.test_accuracy, "{:.2%}"), 7, 7, rank=3, align="right"),
    Column("stages", "stages", draw_stages, len(STAGE_KEYS) + 5, len(STAGE_KEYS) + 5, rank=3),
    Column("disk", "disk", lambda e: _number_of_bytes(e.size_bytes), 9, 9, rank=7, align="right"),
    Column("age", "age", describe_experiment_age, 6, 6, rank=6, align="right"),
    Column(
        "saturation",
        "saturation",
        lambda e: ((draw_spark(e.saturation), SATURATION_LIGHT),),
        SPARK_WIDTH,
        SPARK_WIDTH,
        rank=8,
    ),
    Column(
        "experiment",
        "experiment",
        lambda e: clean(e.path.name),  # which begins with what other columns show, and ends with a digest
        10,
        200,
        rank=9,
        n_last=-1,
        stretches=True,
    ),
)
"""The columns of the runs screen; those of the highest rank are left out in narrow terminals."""


def _number_of_bytes(size_bytes: int | None) -> str:
    return "" if size_bytes is None else describe_size(size_bytes)


SORT_KEYS: Mapping[str, Callable[[Experiment], Any]] = {
    "run": lambda e: e.run_id.lower(),
    "model": lambda e: e.model.lower(),
    "dataset": lambda e: e.dataset.lower(),
    "px": lambda e: e.resolution,
    "epoch": lambda e: e.epochs_done,
    "accuracy": lambda e: e.test_accuracy,
    "stages": lambda e: sum(status == "done" for status in e.stages.values()),
    "disk": lambda e: e.size_bytes,
    "age": lambda e: None if e.created is None else -e.created,
    "saturation": lambda e: _mean(e.saturation),
    "experiment": lambda e: e.path.name,
}
"""What each column sorts by."""


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def sort_experiments(experiments: Iterable[Experiment], column: str, is_reversed: bool) -> list[Experiment]:
    """Return experiments by a column; what has no value there comes last either way."""
    key = SORT_KEYS[column]
    known = [(value, e) for e in experiments if (value := key(e)) is not None]
    unknown = [e for e in experiments if key(e) is None]
    known.sort(key=lambda pair: pair[0], reverse=is_reversed)
    return [e for _, e in known] + unknown


def describe_counts(experiments: Iterable[Experiment], n_all: int | None = None) -> Text:
    """Return how many experiments are listed, and how many run, failed or can't be read."""
    shown = list(experiments)
    many = len(shown) if n_all is None or n_all == len(shown) else n_all
    of = "" if many == len(shown) else f"{len(shown)} of "
    text = Text(f"{of}{counted(many, 'experiment')}")
    for n, what, style in (
        (sum(e.has("running") for e in shown), "running", STYLES["running"]),
        (sum(e.has("failed") for e in shown), "failed", STYLES["failed"]),
        (sum(e.has("cancelled") for e in shown), "cancelled", STYLES["cancelled"]),
        (sum(bool(e.problem) for e in shown), "unreadable", "yellow"),
    ):
        if n:
            text.append(" · ", "dim").append(f"{n} {what}", style)
    return text


def describe_row(experiment: Experiment) -> dict[str, str]:
    """Return the texts of an experiment's row, by column, at full length."""
    return {column.key: cell_text(column.cell(experiment)) for column in COLUMNS}


def describe_problem(experiment: Experiment) -> str:
    """Return why an experiment can't be read, short enough for a row; nothing where it can."""
    return f"⚠ {clean(experiment.problem.removeprefix('manifest.json '))}" if experiment.problem else ""
