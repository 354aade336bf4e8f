"""``satstore demo``: the main job, end to end, on scikit-learn's handwritten digits."""

import shutil
import sys
from pathlib import Path

from satstore.cli import command
from satstore.cli.command import ended_by_signals
from satstore.cli.console import make_console
from satstore.cli.progress import Bar
from satstore.cli.run_stages import describe
from satstore.cli.show import print_layers
from satstore.config.grid import read_config
from satstore.jobs.record import record_job
from satstore.runs.run import Run
from satstore.stages.pipeline import Outcome, make_plan, make_runs, run_stages


def run_demo(run_id: str, device: str | None, logs_dir: Path | None) -> None:
    """Run the demo's stages, or find them done, and show the result."""
    [config] = read_config("demo")
    bar = Bar()
    [run] = make_runs([config], run_id, logs_dir, bar.listen)
    with ended_by_signals(), record_job(command.words, run.path.parent.parent) as bar.record:
        bar.record.run = run.name
        with bar:
            outcomes = run_stages([run], make_plan(config.stages, {"device": device}), with_needs=True)
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
                bar.say(describe(outcome))
        show_demo(run, outcomes, logs_dir)


def show_demo(run: Run, outcomes: list[Outcome], logs_dir: Path | None) -> None:
    """Draw the demo's figure, and print what it found and what to try next."""
    from satstore.reports.plots import plot_layers, save_figure

    run.reload()
    figure = run.path / "layers.png"
    if not figure.exists() or any(outcome.result == "done" for outcome in outcomes):
        save_figure(plot_layers(run), figure)
    console = make_console()
    console.print()
    print_layers(console, run)
    logs = f" --logs-dir {logs_dir}" if logs_dir else ""
    command = own_command()
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


def own_command() -> str:
    """Return how to call this program from here: its name where the shell finds it, else its path."""
    if shutil.which("satstore"):
        return "satstore"
    script = Path(sys.argv[0])
    if script.name != "satstore":
        return f"{sys.executable} -m satstore"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)
