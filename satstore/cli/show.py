"""``satstore ls`` and ``satstore show``: experiments, and the layers of one of them."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from satstore.cli.console import SafeConsole, make_console, make_table, print_json, print_line
from satstore.cli.layer_table import print_layers
from satstore.cli.options import Json, LogsDir, RunName
from satstore.errors import ConfigError, CorruptError
from satstore.runs.logs_folder import find_logs_dir, list_runs, open_run
from satstore.runs.manifest import SourceRecord
from satstore.runs.repair import extract_command
from satstore.runs.run import Run
from satstore.system.text import (
    MARKS,
    describe_age,
    describe_costs,
    describe_size,
    stage_name,
)


def list_experiments(*, as_json: Json = False, logs_dir: LogsDir = None) -> None:
    """Print the experiments of a logs folder, with epochs, accuracy and the states of their stages."""
    runs = list_readable_runs(logs_dir)
    if as_json:
        print_json([summarize_run(run) for run in runs])
    elif not runs:
        print_line(f"no runs in {find_logs_dir(logs_dir).absolute()}; try: satstore demo")
    else:
        print_runs(runs)


def list_readable_runs(logs_dir: Path | None) -> list[Run]:
    """Return the experiments of a logs folder; warn of those that can't be read."""
    unreadable: list[CorruptError] = []
    runs = list_runs(logs_dir, unreadable)
    for error in unreadable:
        print_line(f"warning: {error}", is_error=True)
    return runs


def print_runs(runs: Iterable[Run]) -> None:
    """Print a table of experiments."""
    table = make_table("run", "epoch", "accuracy", "stages", "age", right=("epoch", "accuracy", "age"))
    for run in runs:
        summary = run.manifest.summary
        accuracy = "" if summary.test_accuracy is None else f"{summary.test_accuracy:.2%}"
        reached = {key: status for key, status in run.statuses().items() if status != "missing"}
        marks = " ".join(f"{MARKS[status]}{stage_name(key)}" for key, status in reached.items())
        epochs = f"{summary.epochs_done}/{run.config.epoch}"
        table.add_row(run.name, epochs, accuracy, marks, describe_age(time.time() - run.manifest.created))
    make_console().print(table)


def summarize_run(run: Run) -> dict[str, Any]:
    """Return an experiment's entry of ``ls --json``."""
    config, summary = run.config, run.manifest.summary
    return {
        "run_id": run.run_id,
        "experiment": run.experiment,
        "path": str(run.path.absolute()),
        "model": config.model,
        "dataset": config.dataset,
        "resolution": config.resolution,
        "epochs": config.epoch,
        "epochs_done": summary.epochs_done,
        "test_accuracy": summary.test_accuracy,
        "stages": run.statuses(),
    }


def summarize_layers(run: Run) -> list[dict[str, Any]]:
    """Return an experiment's layers, in forward order, with their results after the last epoch."""
    summary = run.manifest.summary
    fitted = [key for key in run.manifest.last_probes if key in summary.probe_accuracy]
    return [
        {
            "layer": record.layer,
            "index": record.index,
            "kind": record.kind,
            "n_features": record.n_features,
            "intrinsic_dimension": summary.intrinsic_dimension.get(record.layer),
            "saturation": summary.saturation.get(record.layer),
            "probe_accuracy": {
                str(key): summary.probe_accuracy[key][record.layer]
                for key in fitted
                if record.layer in summary.probe_accuracy[key]
            },
        }
        for record in run.manifest.layers
    ]


def show_experiment(
    run: RunName,
    *,
    as_json: Json = False,
    advice: Annotated[
        bool, Parameter(negative="", help="say what the curves mean, and what to try, instead")
    ] = False,
    least_gain: Annotated[
        float | None,
        Parameter(help="accuracy that a layer's probe has to gain to count; by default .01, a point"),
    ] = None,
    tail_share: Annotated[
        float | None,
        Parameter(help="share of the median saturation that a tail's layers stay under; by default .5"),
    ] = None,
    logs_dir: LogsDir = None,
) -> None:
    """Print an experiment's state and layers, or advice on it."""
    if advice:
        thresholds = {"least_gain": least_gain, "tail_share": tail_share}
        given = {key: value for key, value in thresholds.items() if value is not None}
        show_advice(run, logs_dir, as_json, given)
        return
    found = open_run(run, logs_dir)
    if as_json:
        print_json(describe_experiment(found))
    else:
        print_experiment(found)


def describe_experiment(run: Run) -> dict[str, Any]:
    """Return an experiment's manifest and layers for ``show --json``."""
    content = run.manifest.model_dump(mode="json") | {"layers": summarize_layers(run)}
    for stage, record in content["stages"].items():
        record["status"] = run.status(stage)  # the manifest does not show that a process died
    return content


def print_experiment(run: Run) -> None:
    """Print an experiment's config, stages, layers, costs and warnings."""
    console = make_console()
    manifest = run.manifest
    console.print(f"{run.name}")
    console.print(f"  {run.config.title}")
    console.print(f"  {run.progress_text}")
    statuses = run.statuses()
    console.print("  " + "  ".join(f"{MARKS[s]} {stage_name(key)}" for key, s in statuses.items()))
    console.print(f"  {run.path.absolute()}")
    if manifest.source is not None:
        print_source(console, manifest.source)
    if manifest.layers:
        console.print()
        print_layers(console, run)
    if manifest.targets:
        named = [f"{name} ({len(record.classes)})" for name, record in manifest.targets.items()]
        console.print(f"targets, with their numbers of classes: {', '.join(named)}")
    costs = run.costs()
    if costs is not None:
        console.print(describe_costs(costs))
    if run.has_file("receptive_field.csv"):
        found = manifest.summary.border_layer, manifest.summary.strict_border_layer
        border, strict = (layer or "none" for layer in found)
        console.print(f"border layer at {run.config.resolution} px: {border} (strict: {strict})")
    if manifest.re_extractable:
        size = describe_size(sum(record.size_bytes for record in manifest.re_extractable.values()))
        again = extract_command(run, *manifest.re_extractable)
        console.print(f"latents of {size} were removed; write them again with: {again}")
    for warning in manifest.warnings:
        console.print(f"warning: {warning}")
    for key, error in run.failures(statuses).items():
        console.print(f"{stage_name(key)} failed: {error}")


def print_source(console: SafeConsole, source: SourceRecord) -> None:
    """Print where a recorded model and its data came from, and the command that recorded them."""
    version = f" ({source.version})" if source.version else ""
    weights = f", weights: {source.weights}" if source.weights else ""
    recipe = f", prepared by: {source.recipe}" if source.recipe else ""
    for name, text in (
        ("model", f"{source.source}{version}{weights}"),
        ("data", f"{source.data}{recipe}"),
        ("by", source.command),
    ):
        console.print(f"  {name:<5} {text}")


def show_advice(name: str, logs_dir: Path | None, as_json: bool, thresholds: Mapping[str, float]) -> None:
    """Print advice on an experiment: what its curves mean, and what to try."""
    for key, value in thresholds.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"--{key.replace('_', '-')} {value:g}: expected a number from 0 on")
    from satstore.reports.evidence import advise_on

    run = open_run(name, logs_dir)
    advice = advise_on(run, **thresholds)
    if as_json:
        print_json(asdict(advice))
        return
    console = make_console()
    console.print(f"{run.name}: {run.config.title}")
    for line in advice.lines():
        console.print(line)
