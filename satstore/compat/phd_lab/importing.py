"""Imports of phd-lab's experiments: all of them are read, then each is written as a run."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from satstore.compat.phd_lab.latents import (
    LatentFolder,
    convert_latents,
    find_latent_folders,
    read_latent_folder,
)
from satstore.compat.phd_lab.tables import (
    infer_layers,
    metrics_table,
    read_probes,
    read_projections,
    read_receptive_fields,
    saturation_table,
)
from satstore.compat.phd_lab.tree import (
    LoggedExperiment,
    find_logged_experiments,
    read_logged_config,
    read_logged_table,
    reporting_corruption,
)
from satstore.compat.phd_lab.weights import pack_weights, read_weights
from satstore.config.experiment import ExperimentConfig
from satstore.config.latent_keys import ProbeKey
from satstore.errors import ConfigError, NotFoundError
from satstore.runs.events import Listener
from satstore.runs.logs_folder import check_run_id, make_run
from satstore.runs.manifest import (
    CHECKPOINT,
    NO_PROBE,
    LayerRecord,
    Manifest,
    ProbesRecord,
    StageRecord,
    Summary,
)
from satstore.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd

IMPORT_NOTE = (
    "import: this run is phd-lab's; its intrinsic dimension and saturation are by delve's definition, one "
    "dimension less than satstore's, and there are no spectra for other deltas"
)
STAGE_FILES = {
    "train": "metrics.csv",
    "saturation": "saturation.csv",
    "receptive_field": "receptive_field.csv",
    "project": "projection.csv",
}
"""Stages that count as done, each by the file that it would have written."""


@dataclass
class ImportedExperiment:
    """What an experiment's files hold, in satstore's formats; latents have one folder per pooling."""

    table: Path
    run_id: str
    config: ExperimentConfig
    files: dict[str, bytes]
    layers: list[LayerRecord]
    summary: Summary
    warnings: list[str]
    latents: list[LatentFolder] = field(default_factory=list)

    @property
    def source(self) -> str:
        """Where it was read, as the run's manifest names it."""
        return str(self.table.absolute())


def import_logs(
    root: Path,
    logs_dir: Path,
    run_id: str | None = None,
    *,
    latents: bool = False,
    listener: Listener | None = None,
) -> list[Run]:
    """Import every experiment of a tree of phd-lab's logs.

    Parameters
    ----------
    run_id
        By default the names of the experiments' folders.
    latents
        Convert their latents too, which lie in the tree or in ``latent_datasets`` beside it. Where that was
        killed, the same call goes on.

    Raises
    ------
    NotFoundError
        If there is none, or none has latents.
    CorruptError
        If a file can't be read as what its name says.
    ConfigError
        If an experiment is there already, or a run id can't be used.
    """
    # 1. Read all, so that nothing is written of a tree with a damaged file.
    experiments = [read_logged_experiment(logged, root) for logged in find_logged_experiments(root)]
    if not experiments:
        raise NotFoundError(
            f"no experiments of phd-lab under {root}: expected files such as Model-Dataset-r32-bs128-e30.csv"
        )
    if latents:
        find_latents(root, experiments)
    # 2. Check that their places are free, or hold what an earlier import left unfinished.
    begun: dict[Path, Run | None] = {}
    for experiment in experiments:
        target = logs_dir / check_run_id(run_id or experiment.run_id) / experiment.config.experiment
        run = Run(target, listener) if (target / "manifest.json").exists() else None
        if target in begun or (run and not is_unfinished(run, experiment)):
            raise ConfigError(f"{target} is there already; give it another name with --run-id")
        begun[target] = run
    # 3. Write each run, then its latents.
    written = []
    for experiment, run in zip(experiments, begun.values(), strict=True):
        run = run or write_run(logs_dir, run_id or experiment.run_id, experiment, listener)
        for folder in experiment.latents:
            convert_latents(run, folder)
        written.append(run)
    return written


def is_unfinished(run: Run, experiment: ImportedExperiment) -> bool:
    """Return whether a run is an earlier import of the same experiment that lacks some of its latents."""
    is_same = run.manifest.environment.get("source") == experiment.source
    return is_same and any(folder.key not in run.manifest.latents for folder in experiment.latents)


def find_latents(root: Path, experiments: Iterable[ImportedExperiment]) -> None:
    """Find the folders of latents of experiments and add them to each; of one pooling, the first.

    Raises NotFoundError if there are none, CorruptError if a folder's files can't be read.
    """
    by_table = {experiment.table: experiment for experiment in experiments}
    for table, path in find_latent_folders(root, by_table):
        experiment = by_table[table]
        folder = read_latent_folder(path, experiment.layers)
        if folder.key not in {other.key for other in experiment.latents}:
            experiment.latents.append(folder)
    if not any(experiment.latents for experiment in by_table.values()):
        raise NotFoundError(
            f"no latents of phd-lab in {root} or in latent_datasets beside it: expected folders that hold a "
            "model_pointer.txt which names the folder of an experiment's logs"
        )


def read_logged_experiment(logged: LoggedExperiment, root: Path) -> ImportedExperiment:
    """Read an experiment's files; raise CorruptError if one can't be read."""
    table = read_logged_table(logged.table)
    state = read_weights(logged)
    with reporting_corruption(logged.table, "table of metrics and saturation"):
        saturation, metrics = saturation_table(table), metrics_table(table)
        layers = infer_layers(saturation, state)
    config = read_logged_config(logged)
    probes = dict(read_probes(logged, layers))
    border, receptive_fields = read_receptive_fields(logged, layers, config.resolution)
    with reporting_corruption(logged.table, "table of metrics and saturation"):
        summary = summarize_logs(metrics, saturation, probes, border)
    saturation.insert(0, "delta", config.delta)
    saturation["index"] = [[r.layer for r in layers].index(layer) for layer in saturation["layer"]]
    tables = {
        "metrics": metrics,
        "saturation": saturation if len(saturation) else None,
        **{key.table: found for key, found in probes.items()},
        "receptive_field": receptive_fields,
        "projection": read_projections(logged, root, config),
    }
    files = {
        f"{name}.csv": found.to_csv(index=False).encode()
        for name, found in tables.items()
        if found is not None
    }
    if state is not None and config.is_finished(len(metrics), None):
        files[CHECKPOINT] = pack_weights(state, len(metrics) - 1)
    elif state is not None:
        logged.warnings.append(
            "its weights were left out: training was not finished, and can't be gone on with"
        )
    return ImportedExperiment(logged.table, logged.run_id, config, files, layers, summary, logged.warnings)


def summarize_logs(
    metrics: "pd.DataFrame",
    saturation: "pd.DataFrame",
    probes: "dict[ProbeKey, pd.DataFrame]",
    border: str | None,
) -> Summary:
    """Return what lists show of an experiment: its last epoch, and its probes' mean over positions."""
    import pandas as pd

    is_last = (saturation["epoch"] == saturation["epoch"].max()) & (saturation["split"] == "train")
    last = saturation[is_last].set_index("layer")
    dimensions = finite_numbers(last["intrinsic_dimension"])
    accuracies = finite_numbers(metrics.get("eval_accuracy", pd.Series(dtype=float)))
    return Summary(
        epochs_done=len(metrics),
        test_accuracy=[*accuracies.values()][-1] if accuracies else None,
        saturation=finite_numbers(last["saturation"]),
        intrinsic_dimension={layer: None if n is None else int(n) for layer, n in dimensions.items()},
        probe_accuracy={
            key: finite_numbers(table.groupby("layer", sort=False)["eval_accuracy"].mean())
            for key, table in probes.items()
        },
        border_layer=border,
    )


def finite_numbers(column: "pd.Series[float]") -> dict[str, float | None]:
    """Return a column's numbers by its index; None for NaN and infinities."""
    return {f"{name}": float(n) if math.isfinite(n) else None for name, n in column.items()}


def write_run(
    logs_dir: Path, run_id: str, experiment: ImportedExperiment, listener: Listener | None = None
) -> Run:
    """Write one experiment, in a single commit."""
    run = make_run(logs_dir, run_id, experiment.config, listener)
    done = [stage for stage, name in STAGE_FILES.items() if name in experiment.files]
    now, known = time.time(), {record.layer for record in experiment.layers}

    def change(manifest: Manifest) -> None:
        manifest.layers, manifest.summary = experiment.layers, experiment.summary
        manifest.environment |= {"imported_from": "phd-lab", "source": experiment.source}
        manifest.warnings = [IMPORT_NOTE, *(f"import: {line}" for line in experiment.warnings)]
        for stage in [*done, *(["probe"] if experiment.summary.probe_accuracy else [])]:
            manifest.stages[stage] = StageRecord(status="done", started=now, ended=now)
        for key, accuracies in experiment.summary.probe_accuracy.items():
            layers = {layer: NO_PROBE for layer in accuracies if layer in known}
            manifest.probes[key] = ProbesRecord(C=1.0, tol=1e-4, max_iter=100, layers=layers)

    with run.lock():
        run.commit(experiment.files, change)
    return run
