"""The values that shells complete beside commands and flags: names of runs, configs and figures."""

from pathlib import Path
from typing import Any


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
