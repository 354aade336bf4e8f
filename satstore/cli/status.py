"""``satstore status``: the terminal app's table of experiments, as text or CSV."""

import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.text import Text

from satstore.cli.console import make_console, make_table
from satstore.cli.options import LogsDir
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
from satstore.reports.listing.filters import parse_filter
from satstore.reports.listing.job_text import describe_job
from satstore.reports.listing.reader import Experiment, LogsReader, Snapshot
from satstore.reports.listing.table_layout import as_cell
from satstore.reports.spreadsheets import format_csv
from satstore.runs.logs_folder import find_logs_dir
from satstore.system.text import clean

WATCH_S = 1.0


def show_status(
    *,
    watch: Annotated[bool, Parameter(negative="", help="print it again whenever something changed")] = False,
    filter: Annotated[str | None, Parameter(help="such as: model:resnet* acc>90 probe:done text")] = None,
    sort: Annotated[str, Parameter(help="a column")] = "run",
    reverse: Annotated[bool, Parameter(negative="", help="the largest first")] = False,
    csv: Annotated[bool, Parameter(negative="", help="print CSV")] = False,
    logs_dir: LogsDir = None,
) -> None:
    """Print the experiments that match a filter, sorted by a column, and the running jobs."""
    wanted, column = parse_filter(filter or ""), find_sort_key(sort)
    root = find_logs_dir(logs_dir)
    reader, printed = LogsReader(root), None
    while True:
        snapshot = reader.poll()
        if snapshot is not printed:
            found = [e for e in snapshot.experiments if wanted.matches(e)]
            experiments = sort_experiments(found, column, reverse)
            if csv:
                print_csv(experiments)
            else:
                print_snapshot(experiments, snapshot, root)
            printed = snapshot
        if not watch:
            return
        time.sleep(WATCH_S)


def find_sort_key(name: str) -> str:
    """Return the key of a column that is named by its label or key."""
    keys = {column.label: column.key for column in COLUMNS} | {key: key for key in SORT_KEYS}
    if name not in keys:
        raise UnknownNameError(f"no column {name!r}{suggest(name, keys, len(keys))}")
    return keys[name]


def print_snapshot(experiments: list[Experiment], snapshot: Snapshot, root: Path) -> None:
    """Print experiments and running jobs."""
    console = make_console()
    if snapshot.problem:
        console.print(f"{root.absolute()} {snapshot.problem}")
        return
    if not snapshot.experiments:
        console.print(f"no runs in {root.absolute()}; try: satstore demo")
        return
    right = [column.label for column in COLUMNS if column.align == "right"]
    table = make_table(*(column.label for column in COLUMNS), right=right)
    for experiment in experiments:
        problem = describe_problem(experiment)
        cells = [Text.assemble(*as_cell(column.cell(experiment))) for column in COLUMNS]
        table.add_row(*cells[:-1], Text(problem, "yellow") if problem else cells[-1])
    console.print(table)
    console.print(describe_counts(experiments, len(snapshot.experiments)))
    for job in snapshot.jobs:
        if job.is_running:
            console.print(clean(f"job {job.number}: {job.command} {describe_job(job)}"))


def print_csv(experiments: list[Experiment]) -> None:
    """Print experiments as CSV."""
    heads = [column.key for column in COLUMNS]
    sys.stdout.write(format_csv([heads, *([*describe_row(e).values()] for e in experiments)]))
