"""Commands that work: stages on the experiments of a config or a run id."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from satstore.cli import command
from satstore.cli.command import ended_by_signals
from satstore.cli.console import make_console, say
from satstore.cli.progress import Bar
from satstore.config.experiment import ExperimentConfig
from satstore.config.grid import read_config
from satstore.errors import ConfigError, SatstoreError
from satstore.jobs.record import record_job
from satstore.jobs.start import start_job
from satstore.runs.logs_folder import check_run_id, find_logs_dir, find_runs
from satstore.runs.run import Run
from satstore.stages.parameters import StageParameters
from satstore.stages.pipeline import Outcome, make_runs, run_stages

if TYPE_CHECKING:
    from satstore.cli.app import Target

Work = Sequence[tuple[Run, Mapping[str, StageParameters]]]

Plan = Callable[[ExperimentConfig], Mapping[str, StageParameters]]


def work(target: "Target", plan: Plan, *, with_table: bool = False) -> None:
    """Run each experiment's plan, show the progress, and say what was done.

    Parameters
    ----------
    with_table
        Print at the end what became of each stage of each experiment.

    Raises
    ------
    SatstoreError
        The only experiment's error; where there are several, how many failed, each named before.
    """
    if target.detach:
        detach(check_work(target, plan))
        return
    bar = Bar()
    work = find_work(target, plan, bar)
    with ended_by_signals(), record_job(command.words, work[0][0].path.parent.parent) as bar.record:
        with bar:
            outcomes = perform(work, bar, with_needs=target.config is not None)
        if with_table:
            print_outcomes(outcomes)
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        if failed and len(work) == 1 and failed[0].error is not None:
            raise failed[0].error
        if failed:
            raise SatstoreError(f"{len(failed)} of {len(work)} experiments failed")


def perform(work: Work, bar: Bar, *, with_needs: bool) -> list[Outcome]:
    """Run each experiment's plan, and say what was done."""
    outcomes = []
    for run, parameters in work:
        if bar.record is not None:
            bar.record.run = run.name
        found = run_stages([run], parameters, with_needs=with_needs)
        outcomes += found
        for outcome in found:
            if outcome.error is None or len(work) > 1:
                bar.say(describe(outcome))
    return outcomes


def check_target(target: "Target") -> str:
    """Return the run id, or the name of the run, that a command is to work on.

    Raises
    ------
    ConfigError
        If it names none, or two.
    """
    if target.config is not None and target.run is not None:
        raise ConfigError("--config and --run exclude each other: a run has its own config")
    if target.config is not None and target.run_id is None:
        raise ConfigError("--config needs --run-id, the name that the run's folder gets")
    name = target.run or target.run_id
    if name is None:
        raise ConfigError("nothing to work on: give --config and --run-id, or --run")
    return name


def find_work(target: "Target", plan: Plan, bar: Bar) -> Work:
    """Return the experiments that a command names, each with its plan.

    Those of a config are made where they aren't there, once all plans are known to be sound.
    """
    name = check_target(target)
    if target.config is not None:
        configs = read_config(target.config)
        plans = [plan(config) for config in configs]
        runs = make_runs(configs, name, target.logs_dir, bar.listen)
        return list(zip(runs, plans, strict=True))
    runs = find_runs(name, target.logs_dir, bar.listen)
    for run in runs:
        run.load_plugins()  # which may bring the stages that the plan is of
    return [(run, plan(run.config)) for run in runs]


def check_work(target: "Target", plan: Plan) -> Path:
    """Check a command as its start would, and return its logs folder; nothing is made."""
    name = check_target(target)
    if target.config is None:
        return find_work(target, plan, Bar())[0][0].path.parent.parent
    configs = read_config(target.config)
    for config in configs:
        plan(config)
    check_run_id(name)
    return find_logs_dir(target.logs_dir, configs[0])


def detach(logs_dir: Path) -> None:
    """Start the command line that runs in the background instead, and say how to follow it."""
    words = command.words_without("--detach", "--logs-dir=")
    job = start_job([*words, "--logs-dir", str(logs_dir.absolute())], logs_dir)
    where = (
        ""
        if logs_dir.absolute() == find_logs_dir().absolute()
        else f" --logs-dir {shlex.quote(f'{logs_dir}')}"
    )
    say(f"job {job.number} started; follow it with: satstore log {job.number} --follow{where}")


WORDS: Mapping[str, str] = {"done": "done", "skipped": "found done", "failed": "failed"}


def describe(outcome: Outcome) -> str:
    """Return what became of a stage, in one line."""
    text = f"{outcome.run.name}  {outcome.stage}: {WORDS[outcome.result]}"
    return f"{text}: {outcome.error}" if outcome.error else text


def print_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Print a table of what became of each stage, a row per experiment; a stage not reached has a dash."""
    stages = list(dict.fromkeys(outcome.stage for outcome in outcomes))
    table = Table(box=None, pad_edge=False)
    table.add_column("experiment", no_wrap=True)
    for stage in stages:
        table.add_column(stage, no_wrap=True)
    # Points of a grid that differ only in delta, say, are one experiment: what was done for one counts.
    results: dict[tuple[str, str], str] = {}
    for result in ("skipped", "done", "failed"):
        results |= {(o.run.name, o.stage): result for o in outcomes if o.result == result}
    for name in dict.fromkeys(outcome.run.name for outcome in outcomes):
        found = (results.get((name, stage)) for stage in stages)
        table.add_row(name, *(WORDS[result] if result else "–" for result in found))
    counts = Counter(results.values())
    console = make_console()
    console.print(table)
    console.print(", ".join(f"{counts[result]} {word}" for result, word in WORDS.items()))
