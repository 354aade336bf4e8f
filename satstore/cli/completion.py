"""What a shell completes beside commands and flags: names of runs, and of shipped configs."""

from pathlib import Path
from typing import Any, Literal

Shell = Literal["bash", "zsh", "fish", "powershell"]


def name_runs(context: Any) -> list[str]:
    """Return the run ids of the logs folder, and what names single experiments of those that have several."""
    from satstore.runs.logs_folder import find_logs_dir

    given = context.get("--logs-dir")
    found: dict[str, list[str]] = {}
    # By their folders alone: reading thousands of manifests takes longer than who presses Tab waits.
    for manifest in sorted(find_logs_dir(given and given.raw).glob("*/*/manifest.json")):
        found.setdefault(manifest.parts[-3], []).append(manifest.parts[-2])
    names = list(found)
    return names + [f"{run_id}/{name}" for run_id, of_run in found.items() for name in of_run]


def name_configs(context: Any) -> list[str]:
    """Return the names of the shipped configs, and the JSON files of the folder that is being typed."""
    from satstore.config.grid import list_configs

    folder = Path(context.incomplete or ".").expanduser()
    folder = folder if context.incomplete.endswith("/") else folder.parent
    files = [str(path) for path in folder.glob("*.json")] if folder.is_dir() else []
    return [*list_configs(), *sorted(files)]


def name_figures(context: Any) -> list[str]:
    """Return the names of the paper's figures and tables, and of other configs."""
    from satstore.config.grid import list_configs

    return [*(name.rpartition("/")[2] for name in list_configs() if "/" in name), *name_configs(context)]


def print_completion(shell: Shell) -> None:
    """Print the script that makes a shell complete satstore's commands."""
    from satstore.cli.app import app
    from satstore.cli.console import say

    say(app.generate_completion(prog_name="satstore", shell=shell))
