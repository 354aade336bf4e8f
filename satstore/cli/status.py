"""``satstore status``: what the terminal app starts with, as lines."""

import sys
import time
from pathlib import Path

from rich.table import Table
from rich.text import Text

from satstore.cli.console import make_console
from satstore.errors import UnknownNameError
from satstore.registry import suggest
from satstore.reports.listing.columns import (
    COLUMNS,
    SORT_KEYS,
    describe_counts,
    describe_problem,
    describe_row,
    sort_experiments,
)
from satstore.reports.listing.filters import Filter
from satstore.reports.listing.job_text import describe_job
from satstore.reports.listing.reader import Experiment, LogsReader, Snapshot
from satstore.reports.listing.table_layout import as_cell
from satstore.reports.spreadsheets import write_rows
from satstore.runs.logs_folder import find_logs_dir
from satstore.system.text import clean

WATCH_S = 1.0


def show_status(
    logs_dir: Path | None, watch: bool, wanted: Filter, order: tuple[str, bool], as_csv: bool
) -> None:
    """Print the experiments that a filter leaves, sorted by a column or in reverse, and the jobs that run.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    """
    given, is_reversed = order
    keys = {column.label: column.key for column in COLUMNS} | {key: key for key in SORT_KEYS}
    if given not in keys:
        raise UnknownNameError(f"no column {given!r}{suggest(given, keys, len(keys))}")
    column = keys[given]
    root = find_logs_dir(logs_dir)
    reader, printed = LogsReader(root), None
    while True:
        snapshot = reader.poll()
        if snapshot is not printed:
            found = [e for e in snapshot.experiments if wanted.matches(e)]
            experiments = sort_experiments(found, column, is_reversed)
            if as_csv:
                write_csv(experiments)
            else:
                print_snapshot(experiments, snapshot, root)
            printed = snapshot
        if not watch:
            return
        time.sleep(WATCH_S)


def print_snapshot(experiments: list[Experiment], snapshot: Snapshot, root: Path) -> None:
    """Print experiments and running jobs."""
    console = make_console()
    if snapshot.problem:
        console.print(f"{root.absolute()} {snapshot.problem}")
        return
    if not snapshot.experiments:
        console.print(f"no runs in {root.absolute()}; try: satstore demo")
        return
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column.label, justify=column.align, no_wrap=True)
    for experiment in experiments:
        problem = describe_problem(experiment)
        cells = [Text.assemble(*as_cell(column.cell(experiment))) for column in COLUMNS]
        table.add_row(*cells[:-1], Text(problem, "yellow") if problem else cells[-1])
    console.print(table)
    console.print(describe_counts(experiments, len(snapshot.experiments)))
    for job in snapshot.jobs:
        if job.is_running:
            console.print(clean(f"job {job.number}: {job.command} {describe_job(job)}"))


def write_csv(experiments: list[Experiment]) -> None:
    """Print experiments as CSV."""
    heads = [column.key for column in COLUMNS]
    sys.stdout.write(write_rows([heads, *([*describe_row(e).values()] for e in experiments)]))
