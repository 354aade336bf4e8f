"""The types of the flags and arguments that several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from satstore.cli.completers import complete_configs, complete_runs

LogsDir = Annotated[
    Path | None, Parameter(help="logs folder; by default SATSTORE_LOGS_DIR, else the config's, else ./logs")
]

RunName = Annotated[
    str,
    Parameter(help="a run id (RES), or one experiment of it (RES/<experiment>)", completer=complete_runs),
]

Json = Annotated[bool, Parameter(name="--json", negative="", help="print JSON")]

Detach = Annotated[bool, Parameter(negative="", help="start it in the background, and say how to follow it")]


@Parameter(name="*")
@dataclass(frozen=True)
class Target:
    """The experiments that a stage runs on: those of a config under a run id, or those of an existing run."""

    config: Annotated[
        str | None,
        Parameter(
            help="a JSON config, or a shipped one's name; with --run-id; see: satstore list configs",
            completer=complete_configs,
        ),
    ] = None
    run_id: Annotated[
        str | None, Parameter(help="the name of the run's folder; missing stages run first")
    ] = None
    run: Annotated[
        str | None, Parameter(help="a run that is there: RES, or RES/<experiment>", completer=complete_runs)
    ] = None
    logs_dir: LogsDir = None
    detach: Detach = False
