"""Commands that work: stages on the experiments of a config or a run id."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from satstore.cli.look import make_console
from satstore.cli.progress import Bar
from satstore.config import ExperimentConfig, read_config
from satstore.errors import ConfigError, SatstoreError
from satstore.logs import find_runs
from satstore.pipeline import Outcome, make_runs, run_stages
from satstore.registry import load_plugins
from satstore.run import Run
from satstore.stages.stage import StageParameters

if TYPE_CHECKING:
    from satstore.cli.app import Target

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
    with Bar() as bar:
        work = find_work(target, plan, bar)
        runs = [run for run, _ in work]
        outcomes: list[Outcome] = []
        for run, parameters in work:
            found = run_stages([run], parameters, with_needs=target.config is not None)
            outcomes += found
            for outcome in found:
                if outcome.error is None or len(runs) > 1:
                    bar.say(describe(outcome))
    if with_table:
        print_outcomes(outcomes)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed and len(runs) == 1 and failed[0].error is not None:
        raise failed[0].error
    if failed:
        raise SatstoreError(f"{len(failed)} of {len(runs)} experiments failed")


def find_work(target: "Target", plan: Plan, bar: Bar) -> list[tuple[Run, Mapping[str, StageParameters]]]:
    """Return the experiments that a command names, each with its plan.

    Those of a config are made where they aren't there, once all plans are known to be sound.
    """
    if target.config is not None:
        if target.run is not None:
            raise ConfigError("--config and --run exclude each other: a run has its own config")
        if target.run_id is None:
            raise ConfigError("--config needs --run-id, the name that the run's folder gets")
        configs = read_config(target.config)
        plans = [plan(config) for config in configs]
        runs = make_runs(configs, target.run_id, target.logs_dir, bar.listen)
        return list(zip(runs, plans, strict=True))
    name = target.run or target.run_id
    if name is None:
        raise ConfigError("nothing to work on: give --config and --run-id, or --run")
    runs = find_runs(name, target.logs_dir, bar.listen)
    for run in runs:
        load_plugins(run.config.plugins)  # which may bring the stages that the plan is of
    return [(run, plan(run.config)) for run in runs]


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
