"""``satstore estimate``: what a config's experiments will take, as tables, before anything runs."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.table import Table

from satstore.cli.console import SafeConsole, make_console
from satstore.config.experiment import ExperimentConfig
from satstore.config.grid import find_config, read_config, read_content
from satstore.config.naming import name_experiments
from satstore.errors import ConfigError, NotFoundError
from satstore.models.plan import ModelPlan, plan_model
from satstore.planning.estimate import (
    PASSES,
    TYPICAL_RATIO,
    Base,
    Counts,
    Memory,
    Ratios,
    Times,
    kept_bytes,
    latent_bytes,
    latent_passes,
    measure_base,
    stage_memory,
    stage_times,
    store_bytes,
    stored_ratios,
)
from satstore.registry import DATASETS
from satstore.runs.logs_folder import find_logs_dir, find_runs
from satstore.runs.run import Run
from satstore.system.limits import available_memory, free_disk
from satstore.system.memory import resident_bytes
from satstore.system.text import describe_duration, describe_size

if TYPE_CHECKING:
    from satstore.datasets.image_data import ImageData


@dataclass(frozen=True)
class Question:
    """What the command was asked, besides the config."""

    poolings: tuple[str, ...] | None
    n_train: int | None
    n_eval: int | None
    n_classes: int | None
    device: str | None
    memory_limit: int
    workers: int
    calibrate: bool
    logs_dir: Path | None


@dataclass(frozen=True)
class Answer:
    """What one experiment will take; times are missing where nothing was measured."""

    config: ExperimentConfig
    counts: Counts
    plan: ModelPlan
    ratios: Ratios
    measured: str
    memory: Memory
    memory_limit: int
    times: Times | None
    device: str
    logs_dir: Path

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk of all latents, of every epoch."""
        return store_bytes(self.plan, self.counts.n_samples, self.ratios) * latent_passes(self.config)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes on disk of all checkpoints."""
        return kept_bytes(self.plan, self.config)


def estimate(
    source: str | None, run: str | None, changes: Mapping[str, Any], question: Question, as_json: bool
) -> None:
    """Print what each experiment of a config, or of a run, will take."""
    if source is not None and run is not None:
        raise ConfigError("--config and --run exclude each other: a run has its own config")
    if run is None:
        configs = read_configs(source, changes, on_paper=question.n_train is not None)
    else:
        configs = configs_of(find_runs(run, question.logs_dir), changes)
    base = measure_base()
    answers = [answer(config, question, base) for config in configs]
    if as_json:
        print(json.dumps([as_dict(found) for found in answers], indent=1))  # noqa: T201
        return
    console = make_console()
    names = name_experiments([found.config for found in answers])
    for place, (name, found) in enumerate(zip(names, answers, strict=True)):
        if place:
            console.print()
        print_answer(console, name, found)
    if len(answers) > 1:
        print_total(console, answers)


def read_configs(source: str | None, changes: Mapping[str, Any], *, on_paper: bool) -> list[ExperimentConfig]:
    """Read a config, some of its keys replaced.

    Parameters
    ----------
    on_paper
        Take datasets that satstore does not know, too: their counts are given.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    if source is None and "model" not in given:
        raise ConfigError(
            "nothing to estimate: give --config or --run, or --model with --samples and --classes"
        )
    content = ({} if source is None else read_content(find_config(source))) | given
    if on_paper:
        named = content.setdefault("dataset", "paper")
        for name in named if isinstance(named, list) else [named]:
            if name not in DATASETS:
                DATASETS.register(str(name), family="on paper")(_load_none)
    return read_config(content)


def configs_of(runs: Iterable[Run], changes: Mapping[str, Any]) -> list[ExperimentConfig]:
    """Return the configs that runs were made with, some of their keys replaced."""
    configs = []
    for run in runs:
        run.load_plugins()  # those of a run that somebody else made only where the user named them
        content = run.config.model_dump(mode="json")
        configs += read_config(content | {key: value for key, value in changes.items() if value is not None})
    return configs


def _load_none(**_: Any) -> NoReturn:
    """A dataset of which only the counts are known."""
    raise NotFoundError("this dataset is on paper only")


def answer(config: ExperimentConfig, question: Question, base: Base) -> Answer:
    """Work out one experiment."""
    from satstore.planning import calibration
    from satstore.training.devices import choose_device
    from satstore.training.session_data import choose_workers

    device = choose_device(question.device or config.device)
    before = resident_bytes()
    data = None if question.n_train is not None else load_counted(config)
    base = Base(base.probe, base.torch + max(0, resident_bytes() - before))
    counts = count(data, question)
    poolings = question.poolings or config.pooling
    plan = plan_model(config, counts.n_classes, poolings)
    logs_dir = find_logs_dir(question.logs_dir, config)
    ratios, measured = stored_ratios(logs_dir, config, plan)
    if ratios.keys() < {(key, layer) for key, part in plan.shapes.items() for layer in part}:
        ratios, measured = {}, ""
    if not ratios and data is not None:
        ratios, measured = calibration.measure_ratios(config, data, poolings), "a batch, untrained"
    times = None
    loaders = choose_workers(config, data is not None and data.in_memory, question.memory_limit)
    if question.calibrate:
        rates = calibration.measure_rates(config, data, counts.n_classes, poolings, device)
        times = stage_times(plan, config, counts, rates, loaders)
    memory = stage_memory(plan, config, counts, base, question.memory_limit, question.workers, loaders)
    return Answer(
        config, counts, plan, ratios, measured, memory, question.memory_limit, times, str(device), logs_dir
    )


def load_counted(config: ExperimentConfig) -> "ImageData":
    """Load a config's dataset; where it isn't here, say that counts would do.

    Raises
    ------
    NotFoundError
        If it isn't here.
    """
    from satstore.training.session_data import load_data

    try:
        return load_data(config)
    except NotFoundError as error:
        raise NotFoundError(f"{error}; or plan without it: --samples N --classes K") from error


def count(data: "ImageData | None", question: Question) -> Counts:
    """Return a dataset's counts, or those that were given in its place."""
    if data is not None:
        n_classes = question.n_classes or len(data.classes)
        return Counts(len(data.train), question.n_eval or len(data.eval), n_classes)
    if question.n_classes is None:
        raise ConfigError("--samples needs --classes, the number of classes")
    assert question.n_train is not None
    return Counts(question.n_train, question.n_eval or 0, question.n_classes)


def print_answer(console: SafeConsole, name: str, found: Answer) -> None:
    """Print one experiment: a row per layer, then what it needs beside what is here."""
    counts, plan = found.counts, found.plan
    console.print(
        f"{name}: {counts.n_train:,} + "
        f"{counts.n_eval:,} images, {counts.n_classes:,} classes, {plan.n_values / 1e6:.1f} M parameters"
    )
    console.print(layers_table(found))
    source = f"measured: {found.measured}" if found.measured else f"typical: {TYPICAL_RATIO} of float16"
    console.print(f"on disk: float16, compressed; {source}")
    n_epochs = latent_passes(found.config)
    console.print(f"latents of {n_epochs} epochs, each as above\n" if n_epochs > 1 else "")
    console.print(needs_table(found))
    for lack in lacks(found):
        console.print(f"✗ {lack}")
    if found.times is not None:
        console.print(
            f"times on this machine's {found.device}, from a short calibration; probes at {PASSES} passes a "
            "layer (14 to 148 were seen)"
        )


def layers_table(found: Answer) -> Table:
    """Return the table of layers, in forward order, with a line of totals."""
    table = Table(box=None, pad_edge=False)
    for name in ("layer", "kind", "output"):
        table.add_column(name, no_wrap=True)
    keys, n_samples = found.plan.keys, found.counts.n_samples
    for key in keys:
        for name in (f"{key} features", "float16", "on disk"):
            table.add_column(name, justify="right", no_wrap=True)
    totals = {key: [0, 0, 0] for key in keys}
    for layer in found.plan.layers:
        cells = [layer.layer, layer.kind, " × ".join(map(str, layer.output_shape))]
        for key in keys:
            if key not in layer.latents:
                cells += ["", "", ""]
                continue
            shape = layer.latents[key]
            ratio = found.ratios.get((key, layer.layer), TYPICAL_RATIO)
            row = [
                layer.n_features(key),
                latent_bytes(shape, n_samples),
                latent_bytes(shape, n_samples, ratio),
            ]
            totals[key] = [total + value for total, value in zip(totals[key], row, strict=True)]
            cells += [f"{row[0]:,}", *map(describe_size, row[1:])]
        table.add_row(*cells)
    cells = [f"{len(found.plan.layers)} layers", "", ""]
    for total in totals.values():
        cells += [f"{total[0]:,}", *map(describe_size, total[1:])]
    table.add_row(*cells)
    return table


def needs_table(found: Answer) -> Table:
    """Return the table of what the stages need, and whether that is here."""
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "memory", "time", "disk"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for name in ("train", "extract", "probe"):
        memory = describe_size(getattr(found.memory, name))
        duration = "" if found.times is None else f"about {describe_duration(getattr(found.times, name))}"
        disk = {"train": found.checkpoint_bytes, "extract": found.disk_bytes}.get(name)
        table.add_row(
            name,
            f"{'roughly ' if name == 'train' else ''}{memory}",
            duration,
            describe_size(disk) if disk else "",
        )
    memory_here, disk_here = available_memory(), free_disk(found.logs_dir)
    table.add_row(
        "here",
        f"{describe_size(memory_here)} available",
        "",
        f"{describe_size(disk_here)} free",
    )
    return table


def lacks(found: Answer) -> list[str]:
    """Say what does not suffice."""
    memory_here, disk_here = available_memory(), free_disk(found.logs_dir)
    lines = []
    if found.disk_bytes + found.checkpoint_bytes > disk_here:
        lines.append(f"the disk of {found.logs_dir} does not suffice")
    for name in ("train", "extract", "probe"):
        needed = getattr(found.memory, name)
        if needed > memory_here + resident_bytes():
            lines.append(f"the memory here does not suffice to {name}")
        elif name != "train" and needed > found.memory_limit:
            lines.append(f"--memory-limit {describe_size(found.memory_limit)} does not suffice to {name}")
    return lines


def print_total(console: SafeConsole, answers: list[Answer]) -> None:
    """Print the sums over a grid's experiments."""
    parts = [f"{describe_size(sum(found.disk_bytes for found in answers))} on disk"]
    times = [found.times for found in answers if found.times is not None]
    for name in ("train", "extract", "probe"):
        if times:
            parts.append(f"{name} about {describe_duration(sum(getattr(t, name) for t in times))}")
    console.print(f"\n{len(answers)} experiments: {', '.join(parts)}")


def as_dict(found: Answer) -> dict[str, Any]:
    """Return an experiment's estimate for JSON; sizes in bytes, times in seconds."""
    n_samples = found.counts.n_samples
    return {
        "config": found.config.model_dump(mode="json"),
        **asdict(found.counts),
        "n_parameters": found.plan.n_values,
        "layers": [
            {
                "layer": layer.layer,
                "kind": layer.kind,
                "output_shape": layer.output_shape,
                "latents": {
                    str(key): {
                        "shape": shape,
                        "n_features": layer.n_features(key),
                        "float16_bytes": latent_bytes(shape, n_samples),
                        "disk_bytes": latent_bytes(
                            shape, n_samples, found.ratios.get((key, layer.layer), TYPICAL_RATIO)
                        ),
                    }
                    for key, shape in layer.latents.items()
                },
            }
            for layer in found.plan.layers
        ],
        "compression": found.measured or "typical",
        "n_latent_epochs": latent_passes(found.config),
        "disk_bytes": found.disk_bytes,
        "checkpoint_bytes": found.checkpoint_bytes,
        "disk_free_bytes": free_disk(found.logs_dir),
        "memory_bytes": asdict(found.memory),
        "memory_available_bytes": available_memory(),
        "memory_limit_bytes": found.memory_limit,
        "times_s": None if found.times is None else asdict(found.times),
        "passes": PASSES,
        "lacks": lacks(found),
    }
