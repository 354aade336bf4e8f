"""The flags and arguments that several commands share, and the values that shells complete beside them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def complete_runs(context: Any) -> list[str]:
    """Return the run ids of the logs folder, then ``RES/<experiment>`` for each of their experiments."""
    from satstore.runs.logs_folder import find_logs_dir

    given = context.get("--logs-dir")
    found: dict[str, list[str]] = {}
    # Folder names suffice: to read thousands of manifests takes too long for a completion.
    for manifest in sorted(find_logs_dir(given and given.raw).glob("*/*/manifest.json")):
        found.setdefault(manifest.parts[-3], []).append(manifest.parts[-2])
    names = list(found)
    return names + [f"{run_id}/{name}" for run_id, of_run in found.items() for name in of_run]


def complete_configs(context: Any) -> list[str]:
    """Return the names of the shipped configs, then the JSON files of the folder that is typed."""
    from satstore.config.grid import list_configs

    folder = Path(context.incomplete or ".").expanduser()
    folder = folder if context.incomplete.endswith("/") else folder.parent
    files = [str(path) for path in folder.glob("*.json")] if folder.is_dir() else []
    return [*list_configs(), *sorted(files)]


def complete_figures(context: Any) -> list[str]:
    """Return the names of the paper's figures and tables, then all configs."""
    from satstore.config.grid import list_configs

    figures = [name.rpartition("/")[2] for name in list_configs() if "/" in name]
    return [*figures, *complete_configs(context)]


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
