"""Find the panels of the paper's figures, or of any config: its experiments, and which of them have run."""

import shlex
from pathlib import Path

from satstore.config.experiment import ExperimentConfig
from satstore.config.grid import find_config, list_configs, read_config
from satstore.reports.plots import Panel
from satstore.runs.logs_folder import check_run_id, find_logs_dir
from satstore.runs.run import Run


def find_panels(name: str, run_id: str, logs_dir: str | Path | None = None) -> list[Panel]:
    """Find a figure's panels, for :func:`satstore.reports.plots.plot_paper_figure`.

    Parameters
    ----------
    name
        ``figure1`` to ``figure19``, ``table1``, or any config: its path, or a shipped one's name.
    run_id
        The run id that the experiments are under.
    logs_dir
        By default SATSTORE_LOGS_DIR, else the config's, else ``./logs``.

    Returns
    -------
    list of Panel
        One per experiment, in the config's order; those that have not begun have no run.

    Raises
    ------
    NotFoundError
        If there is no such config.
    ConfigError
        If the config or the run id can't be used.
    """
    check_run_id(run_id)
    panels = []
    for source in find_figure(name):
        words = ["satstore", "run", "--config", source, "--run-id", run_id]
        words += [] if logs_dir is None else ["--logs-dir", str(logs_dir)]
        panels += [Panel(c, find_run(c, run_id, logs_dir), shlex.join(words)) for c in read_config(source)]
    return panels


def find_figure(name: str) -> list[str]:
    """Find the configs of a figure by a path, a shipped config's name, or the last part of its name.

    Table 1 has two configs, which are drawn as one.

    Raises
    ------
    NotFoundError
        If there is none of that name.
    """
    if Path(name).suffix == ".json" and Path(name).is_file():
        return [name]
    shipped = list_configs()
    wanted = name.removesuffix(".json")
    found = [full for full in shipped if full == wanted or full.rpartition("/")[2] == wanted]
    if not found:
        return [str(find_config(name))]  # its error suggests similar names
    last = found[0].rpartition("/")[2]
    return [found[0], f"{found[0]}_2"] if last == "table1" else found[:1]


def find_run(config: ExperimentConfig, run_id: str, logs_dir: str | Path | None) -> Run | None:
    """Find the experiment of a config under a run id; None if it has not begun."""
    path = find_logs_dir(logs_dir, config) / run_id / config.experiment
    return Run(path) if (path / "manifest.json").exists() else None
