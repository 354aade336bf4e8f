"""Commands that work: stages on the experiments of a config or a run id."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from satstore.cli.progress import Bar
from satstore.config import ExperimentConfig, read_config
from satstore.errors import ConfigError, SatstoreError
from satstore.logs import find_runs
from satstore.pipeline import Outcome, make_runs, run_stages
from satstore.run import Run
from satstore.stages.stage import StageParameters

if TYPE_CHECKING:
    from satstore.cli.app import Target

Plan = Callable[[ExperimentConfig], Mapping[str, StageParameters]]


def work(target: "Target", plan: Plan) -> None:
    """Run each experiment's plan, show the progress, and say what was done.

    Raises
    ------
    SatstoreError
        The only experiment's error; where there are several, how many failed, each named before.
    """
    with Bar() as bar:
        runs = find_target(target, bar)
        outcomes: list[Outcome] = []
        for run in runs:
            found = run_stages([run], plan(run.config), with_needs=target.config is not None)
            outcomes += found
            for outcome in found:
                if outcome.error is not None and len(runs) == 1:
                    raise outcome.error
                bar.say(describe(outcome))
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        raise SatstoreError(f"{len(failed)} of {len(runs)} experiments failed")


def find_target(target: "Target", bar: Bar) -> list[Run]:
    """Return the experiments that a command names, those of a config made where they aren't there."""
    if target.config is not None:
        if target.run is not None:
            raise ConfigError("--config and --run exclude each other: a run has its own config")
        if target.run_id is None:
            raise ConfigError("--config needs --run-id, the name that the run's folder gets")
        return make_runs(read_config(target.config), target.run_id, target.logs_dir, bar.listen)
    name = target.run or target.run_id
    if name is None:
        raise ConfigError("nothing to work on: give --config and --run-id, or --run")
    return find_runs(name, target.logs_dir, bar.listen)


def describe(outcome: Outcome) -> str:
    """Return what became of a stage, in one line."""
    words = {"done": "done", "skipped": "found done", "failed": "failed"}
    text = f"{outcome.run.name}  {outcome.stage}: {words[outcome.result]}"
    return f"{text}: {outcome.error}" if outcome.error else text
