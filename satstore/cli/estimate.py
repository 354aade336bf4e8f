"""``satstore estimate``: what a config's experiments will take, before anything runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import Parameter

from satstore.cli.console import print_json
from satstore.cli.estimate_tables import ExperimentEstimate, print_estimates, summarize_estimate
from satstore.cli.options import Json, LogsDir
from satstore.config.experiment import ExperimentConfig
from satstore.config.grid import find_config, read_config, read_json_config
from satstore.errors import ConfigError, NotFoundError
from satstore.models.plan import plan_model
from satstore.planning.estimate import Base, Counts, measure_base, stage_memory, stage_times, stored_ratios
from satstore.registry import DATASETS
from satstore.runs.logs_folder import find_logs_dir, find_runs
from satstore.runs.run import Run
from satstore.stages.parameters import DEFAULT_MEMORY_LIMIT, Device, MemoryLimit, Poolings, Tokens
from satstore.stages.selection import choose_request
from satstore.system.memory import resident_bytes

if TYPE_CHECKING:
    from satstore.datasets.image_data import ImageData

ON_PAPER = "A dataset of which only the counts are known."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EstimateOptions:
    """What ``satstore estimate`` estimates, and how."""

    config: Annotated[str | None, Parameter(help="a JSON config, or a shipped one's name")] = None
    run: Annotated[str | None, Parameter(help="a run id, or one experiment of it, with its own config")] = (
        None
    )
    model: Annotated[str | None, Parameter(help="in place of the config's")] = None
    resolution: Annotated[int | None, Parameter(help="in place of the config's, in pixels")] = None
    pooling: Poolings = None
    tokens: Tokens = None
    samples: Annotated[
        int | None, Parameter(help="training images of a dataset that is not here; with --classes")
    ] = None
    eval_samples: Annotated[int | None, Parameter(help="its evaluation images")] = None
    classes: Annotated[int | None, Parameter(help="its classes")] = None
    device: Annotated[Device, Parameter(help="cpu or cuda:N, for the times")] = None
    memory_limit: MemoryLimit = DEFAULT_MEMORY_LIMIT
    workers: Annotated[
        int, Parameter(name=["--workers", "-mp"], help="processes that fit probes side by side")
    ] = 1
    calibrate: Annotated[bool, Parameter(help="time this machine for some seconds")] = True
    as_json: Json = False
    logs_dir: LogsDir = None

    @property
    def changes(self) -> dict[str, Any]:
        """The config keys that are replaced."""
        changes = {"model": self.model, "resolution": self.resolution}
        return {key: value for key, value in changes.items() if value is not None}


def estimate_experiments(*, options: EstimateOptions = EstimateOptions()) -> None:
    """Print what each experiment of a config, or of a run, will take."""
    if options.config is not None and options.run is not None:
        raise ConfigError("--config and --run exclude each other: a run has its own config")
    if options.run is None:
        configs = read_configs(options.config, options.changes, on_paper=options.samples is not None)
    else:
        configs = read_run_configs(find_runs(options.run, options.logs_dir), options.changes)
    base = measure_base()
    estimates = [estimate_experiment(config, options, base) for config in configs]
    if options.as_json:
        print_json([summarize_estimate(estimate) for estimate in estimates])
    else:
        print_estimates(estimates)


def read_configs(source: str | None, changes: dict[str, Any], *, on_paper: bool) -> list[ExperimentConfig]:
    """Read a config, with some of its keys replaced; on_paper: of unknown datasets too."""
    if source is None and "model" not in changes:
        raise ConfigError(
            "nothing to estimate: give --config or --run, or --model with --samples and --classes"
        )
    content = ({} if source is None else read_json_config(find_config(source))) | changes
    if on_paper:
        named = content.setdefault("dataset", "paper")
        for name in named if isinstance(named, list) else [named]:
            if name not in DATASETS:
                DATASETS.register(str(name), family="on paper", description=ON_PAPER)(_refuse_to_load)
    return read_config(content)


def read_run_configs(runs: Iterable[Run], changes: dict[str, Any]) -> list[ExperimentConfig]:
    """Return the configs of runs, with some of their keys replaced."""
    configs = []
    for run in runs:
        run.load_plugins()  # those of an imported run only if the user named them
        configs += read_config(run.config.model_dump(mode="json") | changes)
    return configs


def _refuse_to_load(**_: Any) -> NoReturn:
    raise NotFoundError("this dataset is on paper only")


def estimate_experiment(config: ExperimentConfig, options: EstimateOptions, base: Base) -> ExperimentEstimate:
    """Estimate one experiment."""
    from satstore.planning import calibration
    from satstore.training.devices import choose_device
    from satstore.training.session_data import choose_workers

    device = choose_device(options.device or config.device)
    before = resident_bytes()
    data = None if options.samples is not None else load_counted(config)
    base = Base(base.probe, base.torch + max(0, resident_bytes() - before))
    counts = count_samples(data, options)
    request = choose_request(config, options)
    plan = plan_model(config, counts.n_classes, request)
    logs_dir = find_logs_dir(options.logs_dir, config)
    ratios, measured = stored_ratios(logs_dir, config, plan)
    if ratios.keys() < {(key, layer) for key, part in plan.shapes.items() for layer in part}:
        ratios, measured = {}, ""
    if not ratios and data is not None:
        ratios, measured = calibration.measure_ratios(config, data, request), "a batch, untrained"
    times = None
    loaders = choose_workers(config, data is not None and data.in_memory, options.memory_limit)
    if options.calibrate:
        rates = calibration.measure_rates(config, data, counts.n_classes, request, device)
        times = stage_times(plan, config, counts, rates, loaders)
    memory = stage_memory(plan, config, counts, base, options.memory_limit, options.workers, loaders)
    return ExperimentEstimate(
        config=config,
        counts=counts,
        plan=plan,
        ratios=ratios,
        measured=measured,
        memory=memory,
        memory_limit=options.memory_limit,
        times=times,
        device=str(device),
        logs_dir=logs_dir,
    )


def load_counted(config: ExperimentConfig) -> "ImageData":
    """Load a config's dataset; where it isn't here, the error suggests to give its counts."""
    from satstore.training.session_data import load_data

    try:
        return load_data(config)
    except NotFoundError as error:
        raise NotFoundError(f"{error}; or plan without it: --samples N --classes K") from error


def count_samples(data: "ImageData | None", options: EstimateOptions) -> Counts:
    """Return a dataset's counts; without a dataset, the given ones."""
    if data is not None:
        n_classes = options.classes or len(data.classes)
        return Counts(len(data.train), options.eval_samples or len(data.eval), n_classes)
    if options.classes is None:
        raise ConfigError("--samples needs --classes, the number of classes")
    assert options.samples is not None
    return Counts(options.samples, options.eval_samples or 0, options.classes)
