"""``satstore record``: latents and spectra of a model of a library, of one's own code or of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from cyclopts import Parameter

from satstore.cli.console import print_line
from satstore.cli.options import Detach, LogsDir
from satstore.cli.run_stages import showing_recording, start_in_background
from satstore.runs.logs_folder import check_run_id, find_logs_dir
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
        showing_recording(parameters.run_id, "record", logs) as hooks,
    ):
        from satstore.stages.record.from_source import record_source

        run = record_source(source, parameters, logs_dir=logs_dir, **hooks)
    print_line(run.name)


@contextmanager
def explaining_stop(*, is_kept: bool) -> Iterator[None]:
    """Say of an interrupt what becomes of the recording: it is gone on with, if it is kept, or removed."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if is_kept:
            raise
        raise type(stop)("stopped; what was recorded so far is removed (--resume keeps it)") from stop
