"""``satstore record``: latents and spectra of a model of a library, of one's own code or of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from satstore.cli.command_line import ARGUMENTS
from satstore.cli.console import print_line
from satstore.cli.interrupts import stop_on_signals
from satstore.cli.options import Detach, LogsDir
from satstore.cli.progress import Bar
from satstore.cli.run_stages import start_in_background
from satstore.jobs.record import JobRecord, record_job
from satstore.runs.logs_folder import check_run_id, find_logs_dir
from satstore.runs.run import Run
from satstore.stages.record.parameters import RecordParameters


def record_model(
    source: Annotated[
        str,
        Parameter(
            help="torchvision:NAME, timm:NAME, hf:PATH_OR_NAME, module:factory (of your own code), or a run"
        ),
    ],
    *,
    parameters: Annotated[RecordParameters, Parameter(name="*")],
    logs_dir: LogsDir = None,
    detach: Detach = False,
) -> None:
    """Record a model, its inputs prepared by its own recipe, and print the run's name."""
    check_run_id(parameters.run_id)
    logs = find_logs_dir(logs_dir)
    if detach:
        start_in_background(logs)
        return
    with (
        explaining_stop(is_kept=parameters.resume),
        stop_on_signals(),
        record_job(ARGUMENTS.get(), logs) as job,
    ):
        run = record_with_bar(source, parameters, logs_dir, job)
    print_line(run.name)


def record_with_bar(source: str, parameters: RecordParameters, logs_dir: Path | None, job: JobRecord) -> Run:
    """Record a source, and show its progress; errors that nobody foresaw become one line."""
    from satstore.stages.pipeline import as_satstore_error
    from satstore.stages.record.from_source import record_source

    def begin(run: Run) -> None:
        job.run = run.name

    bar = Bar()
    bar.record = job
    with bar:
        try:
            return record_source(source, parameters, logs_dir=logs_dir, listener=bar.listen, begin=begin)
        except Exception as error:  # what a model or its recipe raises
            raise as_satstore_error(parameters.run_id, "record", error) from error


@contextmanager
def explaining_stop(*, is_kept: bool) -> Iterator[None]:
    """Say of an interrupt what becomes of the recording: it is gone on with, if it is kept, or removed."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if is_kept:
            raise
        raise type(stop)("stopped; what was recorded so far is removed (--resume keeps it)") from stop
