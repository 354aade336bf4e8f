"""``satstore report``: a run as one HTML file."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from satstore.cli.console import print_line
from satstore.cli.options import LogsDir, RunName
from satstore.cli.output import output_file


def write_html_report(
    run: RunName,
    *,
    out: Annotated[Path | None, Parameter(help="an HTML file, or a folder; by default report.html")] = None,
    logs_dir: LogsDir = None,
) -> None:
    """Write the HTML report of a run, and print its path."""
    from satstore.reports.html import write_report
    from satstore.runs.logs_folder import find_runs
    from satstore.storage.files import write_file

    path = output_file(out, Path("report.html"), (".html", ".htm"))
    write_file(path, write_report(find_runs(run, logs_dir)).encode())
    print_line(path.absolute())
