"""Running stages on experiments: one stage, or all that a config names, over a grid or a run id."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from satstore.config.experiment import ExperimentConfig
from satstore.config.grid import read_config
from satstore.config.validation import describe_invalid
from satstore.errors import (
    ConfigError,
    MemoryLimitError,
    MissingStageError,
    SatstoreError,
    StageError,
    reason_of,
)
from satstore.registry import STAGES, stand_in
from satstore.runs.events import Listener
from satstore.runs.logs_folder import check_run_id, find_logs_dir, make_run
from satstore.runs.repair import describe_recorded, record_call
from satstore.runs.run import Run
from satstore.stages.parameters import StageParameters, record_parameters
from satstore.stages.stage import Plan, Stage
from satstore.system.signals import stop_requested


@dataclass(frozen=True)
class Outcome:
    """What became of one stage of one experiment: ``skipped`` was found done; a failed one has its error."""

    run: Run
    stage: str
    result: Literal["done", "skipped", "failed"]
    error: SatstoreError | None = None


def run_stage(run: Run, stage: Stage, parameters: StageParameters, *, with_needs: bool) -> list[Outcome]:
    """Run one stage of one experiment, unless it is found done.

    Parameters
    ----------
    with_needs
        Run the earlier stages that are missing first, and return their outcomes too, rather than refuse.

    Raises
    ------
    MissingStageError
        If an earlier stage is missing and isn't to be run; the message names the command.
    LockedError
        If another process writes the experiment.
    """
    outcomes = []
    run.load_plugins()
    with run.lock():
        for name in stage.needs:
            need: Stage = STAGES[name]
            needed = need.adapt(parameters, latents=False, check=False)
            plan = need.plan(run, needed)
            if not plan.missing:
                continue
            if not with_needs:
                raise MissingStageError(
                    f"{run.name}: {stage.name} needs {need.name} first (missing: {plan.missing[0]}); "
                    f"run: {need.command(run, needed)}"
                )
            _perform(run, need, plan)
            outcomes.append(Outcome(run, name, "done"))
        plan = stage.plan(run, parameters)
        if plan.missing:
            _perform(run, stage, plan)
            outcomes.append(Outcome(run, stage.name, "done"))
        else:
            run.settle(stage.key)
            outcomes.append(Outcome(run, stage.name, "skipped"))
    return outcomes


def _perform(run: Run, stage: Stage, plan: Plan[Any]) -> None:
    if stage.needs_model and run.is_recorded:
        raise ConfigError(
            f"{run.name} was recorded of {describe_recorded(run)}, which {stage.name} does not open; record "
            f"it again with: {record_call(run)}"
        )
    with run.stage(stage.key, record_parameters(plan.parameters)):
        stage.run(run, plan)


def run_stages(
    runs: Iterable[Run], stages: Mapping[str, StageParameters], *, with_needs: bool
) -> list[Outcome]:
    """Run stages, by name and in order, on one experiment after the other; one that fails stops no other."""
    outcomes = []
    for run in runs:
        for name, parameters in stages.items():
            try:
                outcomes += run_stage(run, STAGES[name], parameters, with_needs=with_needs)
            except Exception as error:  # what one model or plugin raises must not stop the next experiment
                if stop_requested.is_set():
                    raise KeyboardInterrupt from error
                outcomes.append(Outcome(run, name, "failed", as_satstore_error(run.name, name, error)))
                break
    return outcomes


def as_satstore_error(run: str, stage: str, error: Exception) -> SatstoreError:
    """Return an error as it is, or, where satstore did not foresee it, in a line that names run and stage."""
    if isinstance(error, SatstoreError):
        return error
    reason = reason_of(error, with_type=True)
    if isinstance(error, MemoryError) or any(words in reason for words in OUT_OF_MEMORY):
        failed: SatstoreError = MemoryLimitError(
            f"{run}: {stage} was given not enough memory by the system ({reason}); end other programs, "
            "lower --memory-limit, take fewer --workers or a smaller batch_size, and give the command again"
        )
    else:
        failed = StageError(f"{run}: {stage} failed: {reason} (see --debug)")
    failed.__cause__ = error
    return failed


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch's errors of the CPU and of GPUs say of it."""


def make_tasks(
    stages: Collection[str], parameters: Mapping[str, Any], *, strict: bool = True
) -> dict[str, StageParameters]:
    """Give every stage its share of some parameters.

    ConfigError if a value can't be used, or, if `strict`, a parameter is no stage's.
    """
    tasks: dict[str, StageParameters] = {}
    used: set[str] = set()
    for name in (STAGES.entry(stage).name for stage in stages):
        model = STAGES[name].parameters
        share = {key: value for key, value in parameters.items() if key in model.model_fields}
        if name == "train" and "extract" in stages:
            share["latents"] = False  # extract writes them, and says so
        is_spread = share.get("workers") not in (None, 1) or share.get("scheduler") is not None
        if name == "probe" and "train" in stages and is_spread:
            share["device"] = None  # that is for training; the probes are fitted by processes
        if "check" in model.model_fields and len(stages) > 1:
            share["check"] = False  # every file is read where that is what was asked for
        used |= share.keys()
        try:
            tasks[name] = model.model_validate(share)
        except ValidationError as error:
            raise ConfigError(describe_invalid(error)) from error
    unused = [key for key, value in parameters.items() if key not in used and value is not None]
    if unused and strict:
        raise ConfigError(f"{unused[0]!r} is no parameter of the stages {', '.join(tasks)}")
    return tasks


def make_runs(
    configs: Iterable[ExperimentConfig],
    run_id: str,
    logs_dir: str | Path | None = None,
    listener: Listener | None = None,
) -> list[Run]:
    """Make or open the folders of a grid's experiments; ConfigError if the run id can't name a folder."""
    check_run_id(run_id)
    return [make_run(find_logs_dir(logs_dir, config), run_id, config, listener) for config in configs]


def run_experiments(
    config: str | Path | Mapping[str, Any],
    run_id: str,
    stages: str | Collection[str] | None = None,
    *,
    logs_dir: str | Path | None = None,
    listener: Listener | None = None,
    registries: Mapping[str, object] | None = None,
    **parameters: Any,
) -> list[Run]:
    """Run the experiments of a config, as ``satstore run`` does.

    Parameters
    ----------
    config
        A path, the name of a shipped config, or a config's content; see ``docs/configuration.md``.
    run_id
        The name of the folder that the experiments get under the logs folder.
    stages
        Names of stages; by default those that the config names.
    logs_dir
        The logs folder; by default SATSTORE_LOGS_DIR, else the config's, else ``./logs``.
    listener
        Called with every event.
    registries
        ``models``, ``datasets``, ``optimizers``, ``metrics`` or ``stages`` to a module, class or object
        whose ``__dict__`` maps names to factories (:mod:`satstore.protocols`), which come before satstore's.
    **parameters
        Parameters of the stages, such as ``device="cpu"``, ``pooling=["4"]`` or ``workers=2``.

    Returns
    -------
    list of Run
        One per experiment of the grid.

    Raises
    ------
    SatstoreError
        The first error of a stage, after all other experiments have been run.
    """
    stages = (stages,) if isinstance(stages, str) else stages
    with stand_in(registries or {}):
        configs = read_config(config)
        tasks = [make_tasks(stages or c.stages, parameters) for c in configs]
        runs = make_runs(configs, run_id, logs_dir, listener)
        outcomes = [
            o for run, task in zip(runs, tasks, strict=True) for o in run_stages([run], task, with_needs=True)
        ]
    raise_first(outcomes)
    return runs


def apply_stages(run: Run, stages: str | Collection[str], **parameters: Any) -> Run:
    """Run stages on a run that is there, as ``satstore STAGE --run RES`` does; what is done is skipped.

    Parameters
    ----------
    run
        Its listener is called with every event.
    stages
        One name, or several in the order in which they are to be run.
    **parameters
        Parameters of the stages, such as ``pooling=["4"]`` or ``overwrite=True``.

    Returns
    -------
    Run
        The same one, its manifest read anew.

    Raises
    ------
    SatstoreError
        If a stage fails, or needs another one first, which the message names.

    Examples
    --------
    >>> run = satstore.apply_stages(satstore.open_run("RES"), "probe")  # doctest: +SKIP
    """
    names = (stages,) if isinstance(stages, str) else stages
    outcomes = run_stages([run], make_tasks(names, parameters), with_needs=False)
    run.reload()
    raise_first(outcomes)
    return run


def raise_first(outcomes: Iterable[Outcome]) -> None:
    """Raise the first error of some outcomes, if any."""
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
