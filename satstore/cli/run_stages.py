"""Run stages on the experiments of a config or a run id."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from satstore.cli.command_line import ARGUMENTS, arguments_without
from satstore.cli.console import make_console, make_table, print_line
from satstore.cli.interrupts import stop_on_signals
from satstore.cli.options import Target
from satstore.cli.progress import Bar
from satstore.config.experiment import ExperimentConfig
from satstore.config.grid import read_config
from satstore.errors import ConfigError, SatstoreError
from satstore.jobs.record import record_job
from satstore.jobs.start import start_job
from satstore.runs.logs_folder import check_run_id, find_logs_dir, find_runs
from satstore.runs.run import Run
from satstore.stages.parameters import StageParameters
from satstore.stages.pipeline import Outcome, as_satstore_error, make_runs, run_stages

PlannedRuns = Sequence[tuple[Run, Mapping[str, StageParameters]]]
"""Runs, each with the parameters of the stages to run."""

MakePlan = Callable[[ExperimentConfig], Mapping[str, StageParameters]]
"""Returns the parameters of the stages to run for a config."""


def run_target(target: Target, make_tasks: MakePlan, *, with_table: bool = False) -> None:
    """Run the stages of each experiment, show progress, and print the outcomes, if wanted as a table too.

    A failure is raised: the only experiment's own; of several, how many failed, after each was reported.
    """
    if target.detach:
        start_in_background(check_target(target, make_tasks))
        return
    bar = Bar()
    planned = plan_target(target, make_tasks, bar)
    with stop_on_signals(), record_job(ARGUMENTS.get(), planned[0][0].path.parent.parent) as bar.record:
        with bar:
            outcomes = run_planned(planned, bar, with_needs=target.config is not None)
        if with_table:
            print_outcomes(outcomes)
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        if failed and len(planned) == 1 and failed[0].error is not None:
            raise failed[0].error
        if failed:
            raise SatstoreError(f"{len(failed)} of {len(planned)} experiments failed")


def run_planned(planned: PlannedRuns, bar: Bar, *, with_needs: bool) -> list[Outcome]:
    """Run the stages of each experiment, and print each outcome; return the outcomes."""
    outcomes = []
    for run, parameters in planned:
        if bar.record is not None:
            bar.record.run = run.name
        found = run_stages([run], parameters, with_needs=with_needs)
        outcomes += found
        for outcome in found:
            if outcome.error is None or len(planned) > 1:
                bar.print_above(describe_outcome(outcome))
    return outcomes


def name_target(target: Target) -> str:
    """Return the run id, or the name of the run, of a target."""
    if target.config is not None and target.run is not None:
        raise ConfigError("--config and --run exclude each other: a run has its own config")
    if target.config is not None and target.run_id is None:
        raise ConfigError("--config needs --run-id, the name that the run's folder gets")
    name = target.run or target.run_id
    if name is None:
        raise ConfigError("nothing to work on: give --config and --run-id, or --run")
    return name


def plan_target(target: Target, make_tasks: MakePlan, bar: Bar) -> PlannedRuns:
    """Return the runs of a target, each with its plan.

    The missing runs of a config are made, after all plans are checked.
    """
    name = name_target(target)
    if target.config is not None:
        configs = read_config(target.config)
        plans = [make_tasks(config) for config in configs]
        runs = make_runs(configs, name, target.logs_dir, bar.listen)
        return list(zip(runs, plans, strict=True))
    runs = find_runs(name, target.logs_dir, bar.listen)
    for run in runs:
        run.load_plugins()  # they may register stages of the plan
    return [(run, make_tasks(run.config)) for run in runs]


def check_target(target: Target, make_tasks: MakePlan) -> Path:
    """Check a target and its plans, without making any run; return the logs folder."""
    name = name_target(target)
    if target.config is None:
        return plan_target(target, make_tasks, Bar())[0][0].path.parent.parent
    configs = read_config(target.config)
    for config in configs:
        make_tasks(config)
    check_run_id(name)
    return find_logs_dir(target.logs_dir, configs[0])


@contextmanager
def showing_recording(run_id: str, stage: str, logs_dir: Path) -> Iterator[dict[str, Any]]:
    """Note a recording as a job, and show its progress; errors that nobody foresaw become one line.

    Yields the arguments by which what records tells of its events, and of the run once it is made.
    """
    bar = Bar()
    with stop_on_signals(), record_job(ARGUMENTS.get(), logs_dir) as job, bar:
        bar.record = job

        def begin(run: Run) -> None:
            job.run = run.name

        try:
            yield {"listener": bar.listen, "begin": begin}
        except Exception as error:  # what a model, a recipe, or a library that reads files raises
            raise as_satstore_error(run_id, stage, error) from error


def start_in_background(logs_dir: Path) -> None:
    """Start this command line as a background job, and print how to follow it."""
    words = arguments_without("--detach", "--logs-dir=")
    job = start_job([*words, "--logs-dir", str(logs_dir.absolute())], logs_dir)
    where = (
        ""
        if logs_dir.absolute() == find_logs_dir().absolute()
        else f" --logs-dir {shlex.quote(f'{logs_dir}')}"
    )
    print_line(f"job {job.number} started; follow it with: satstore log {job.number} --follow{where}")


RESULTS: Mapping[str, str] = {"done": "done", "skipped": "found done", "failed": "failed"}
"""Result of a stage -> how it is printed."""


def describe_outcome(outcome: Outcome) -> str:
    """Describe the outcome of a stage in one line."""
    text = f"{outcome.run.name}  {outcome.stage}: {RESULTS[outcome.result]}"
    return f"{text}: {outcome.error}" if outcome.error else text


def print_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Print a table of outcomes, a row per experiment; a dash for a stage that was not reached."""
    stages = list(dict.fromkeys(outcome.stage for outcome in outcomes))
    table = make_table("experiment", *stages)
    # Points of a grid that differ only in delta, say, are one experiment; a failure of any is shown.
    results: dict[tuple[str, str], str] = {}
    for result in ("skipped", "done", "failed"):
        results |= {(o.run.name, o.stage): result for o in outcomes if o.result == result}
    for name in dict.fromkeys(outcome.run.name for outcome in outcomes):
        found = (results.get((name, stage)) for stage in stages)
        table.add_row(name, *(RESULTS[result] if result else "–" for result in found))
    counts = Counter(results.values())
    console = make_console()
    console.print(table)
    console.print(", ".join(f"{counts[result]} {word}" for result, word in RESULTS.items()))
