"""``satstore demo``: all stages, end to end, on scikit-learn's handwritten digits."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from satstore.cli.command_line import ARGUMENTS
from satstore.cli.console import make_console
from satstore.cli.interrupts import stop_on_signals
from satstore.cli.layer_table import print_layers
from satstore.cli.options import Detach, LogsDir
from satstore.cli.progress import Bar
from satstore.cli.run_stages import describe_outcome, start_in_background
from satstore.config.grid import read_config
from satstore.jobs.record import record_job
from satstore.runs.logs_folder import check_run_id, find_logs_dir
from satstore.runs.run import Run
from satstore.stages.parameters import Device
from satstore.stages.pipeline import Outcome, make_runs, make_tasks, run_stages


def run_demo(
    *,
    run_id: Annotated[str, Parameter(help="the name of the run's folder")] = "demo",
    device: Annotated[Device, Parameter(help="cpu or cuda:N")] = None,
    logs_dir: LogsDir = None,
    detach: Detach = False,
) -> None:
    """Run the demo's stages that are not done yet, and show the result."""
    if detach:
        check_run_id(run_id)
        start_in_background(find_logs_dir(logs_dir))
        return
    [config] = read_config("demo")
    bar = Bar()
    [run] = make_runs([config], run_id, logs_dir, bar.listen)
    with stop_on_signals(), record_job(ARGUMENTS.get(), run.path.parent.parent) as bar.record:
        bar.record.run = run.name
        with bar:
            outcomes = run_stages([run], make_tasks(config.stages, {"device": device}), with_needs=True)
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
                bar.print_above(describe_outcome(outcome))
        show_demo(run, outcomes, logs_dir)


def show_demo(run: Run, outcomes: list[Outcome], logs_dir: Path | None) -> None:
    """Draw the demo's figure, and print its layers, its accuracy and commands to try next."""
    from satstore.reports.plots import plot_layers, save_figure

    run.reload()
    figure = run.path / "layers.png"
    if not figure.exists() or any(outcome.result == "done" for outcome in outcomes):
        save_figure(plot_layers(run), figure)
    console = make_console()
    console.print()
    print_layers(console, run)
    logs = f" --logs-dir {logs_dir}" if logs_dir else ""
    command = find_own_command()
    console.print(
        f"""
test accuracy  {run.manifest.summary.test_accuracy:.2%}
files          {run.path.absolute()}
figure         {figure.absolute()}

try next:
  {command} show {run.run_id}{logs}
  {command} saturation --run {run.run_id} --delta 0.9 --delta 0.999{logs}
  {command} probe --config demo --run-id {run.run_id} -d 2{logs}"""
    )


def find_own_command() -> str:
    """Return the command that calls this program: its name if the shell finds it, else its path."""
    if shutil.which("satstore"):
        return "satstore"
    script = Path(sys.argv[0])
    if script.name != "satstore":
        return f"{sys.executable} -m satstore"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)
