"""Reading experiments of phd-lab's, and writing them as runs."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satstore.compat.phd_lab.latents import Pickles, convert, find_folders, read_folder
from satstore.compat.phd_lab.tables import (
    describe_layers,
    metrics_table,
    read_fields,
    read_probes,
    read_projections,
    saturation_table,
)
from satstore.compat.phd_lab.tree import Original, find_originals, read_config, read_table, reading
from satstore.compat.phd_lab.weights import pack_weights, read_weights
from satstore.config.experiment import ExperimentConfig
from satstore.config.keys import ProbeKey
from satstore.errors import ConfigError, NotFoundError
from satstore.runs.events import Listener
from satstore.runs.logs_folder import check_run_id, make_run
from satstore.runs.manifest import CHECKPOINT, NO_PROBE, LayerRecord, Manifest, ProbesRecord, StageRecord
from satstore.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd

NOTE = (
    "import: this run is phd-lab's; its intrinsic dimension and saturation are by delve's definition, one "
    "dimension less than satstore's, and there are no spectra for other deltas"
)


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
    listener
        Called with every event.

    Raises
    ------
    NotFoundError
        If there is none, or none has latents.
    CorruptError
        If a file can't be read as what its name says.
    ConfigError
        If an experiment is there already, or a run id can't be used.
    """
    originals = list(find_originals(root))
    if not originals:
        raise NotFoundError(
            f"no experiments of phd-lab under {root}: expected files such as Model-Dataset-r32-bs128-e30.csv"
        )
    # All are read before any is written.
    read = [(original, *read_original(original, root)) for original in originals]
    folders = (
        read_folders(root, {original.table: content.layers for original, _, content in read})
        if latents
        else {}
    )
    if latents and not folders:
        raise NotFoundError(
            f"no latents of phd-lab in {root} or in latent_datasets beside it: expected folders that hold a "
            "model_pointer.txt which names the folder of an experiment's logs"
        )
    runs: dict[Path, Run | None] = {}
    for original, config, content in read:
        target = logs_dir / check_run_id(run_id or original.run_id) / config.experiment
        known = Run(target, listener) if (target / "manifest.json").exists() else None
        lacks = [p for p in folders.get(original.table, ()) if known and p.key not in known.manifest.latents]
        if target in runs or (
            known and not (lacks and known.manifest.environment.get("source") == content.source)
        ):
            raise ConfigError(f"{target} is there already; give it another name with --run-id")
        runs[target] = known
    written = []
    for (original, config, content), known in zip(read, runs.values(), strict=True):
        run = known or write_run(logs_dir, run_id or original.run_id, config, content, listener)
        for found in folders.get(original.table, ()):
            convert(run, found)
        written.append(run)
    return written


def read_folders(root: Path, layers: Mapping[Path, list[LayerRecord]]) -> dict[Path, list[Pickles]]:
    """Return the folders of latents of each experiment, by its table; of one pooling the first."""
    found: dict[Path, list[Pickles]] = {}
    for table, folder in find_folders(root, layers):
        of_table, pickles = found.setdefault(table, []), read_folder(folder, layers[table])
        if pickles.key not in {other.key for other in of_table}:
            of_table.append(pickles)
    return found


@dataclass
class Content:
    """What an experiment's files hold, as satstore keeps it."""

    files: dict[str, bytes]
    layers: list[LayerRecord]
    epochs_done: int
    test_accuracy: float | None
    saturation: dict[str, float | None]
    dimension: dict[str, int | None]
    probes: dict[ProbeKey, dict[str, float | None]]
    border: str | None
    source: str
    warnings: list[str]


def read_original(original: Original, root: Path) -> tuple[ExperimentConfig, Content]:
    """Read an experiment's files.

    Raises
    ------
    CorruptError
        If one can't be read.
    """
    table = read_table(original.table)
    state = read_weights(original)
    with reading(original.table, "table of metrics and saturation"):
        dimensions, metrics = saturation_table(table), metrics_table(table)
        layers = describe_layers(dimensions, state)
    config = read_config(original)
    probes = dict(read_probes(original, layers))
    border, fields = read_fields(original, layers, config.resolution)
    is_done = config.is_finished(len(metrics), None)
    files: dict[str, bytes] = {"metrics.csv": as_csv(metrics)}
    if len(dimensions):
        dimensions.insert(0, "delta", config.delta)
        dimensions["index"] = [[r.layer for r in layers].index(layer) for layer in dimensions["layer"]]
        files["saturation.csv"] = as_csv(dimensions)
    files |= {key.file: as_csv(found) for key, found in probes.items()}
    if fields is not None:
        files["receptive_field.csv"] = as_csv(fields)
    projections = read_projections(original, root, config)
    if projections is not None:
        files["projection.csv"] = as_csv(projections)
    if state is not None and is_done:
        files[CHECKPOINT] = pack_weights(state, len(metrics) - 1)
    elif state is not None:
        original.warnings.append(
            "its weights were left out: training was not finished, and can't be gone on with"
        )
    last = dimensions[(dimensions["epoch"] == dimensions["epoch"].max()) & (dimensions["split"] == "train")]
    accuracy = metrics["eval_accuracy"].iloc[-1] if "eval_accuracy" in metrics and len(metrics) else None
    content = Content(
        files,
        layers,
        len(metrics),
        None if accuracy is None else float(accuracy),
        {row.layer: _number(row.saturation) for row in last.itertuples()},
        {row.layer: _whole(row.intrinsic_dimension) for row in last.itertuples()},
        {key: _means(found) for key, found in probes.items()},
        border,
        str(original.table.absolute()),
        original.warnings,
    )
    return config, content


def write_run(
    logs_dir: Path, run_id: str, config: ExperimentConfig, content: Content, listener: Listener | None = None
) -> Run:
    """Write one experiment, in a single commit."""
    run = make_run(logs_dir, run_id, config, listener)
    stages = {
        "train": "metrics.csv",
        "saturation": "saturation.csv",
        "receptive_field": "receptive_field.csv",
    }
    stages |= {"project": "projection.csv", **({"probe": ""} if content.probes else {})}
    now, known = time.time(), {record.layer for record in content.layers}

    def change(manifest: Manifest) -> None:
        manifest.layers = content.layers
        manifest.environment |= {"imported_from": "phd-lab", "source": content.source}
        manifest.warnings = [NOTE, *(f"import: {line}" for line in content.warnings)]
        for stage, name in stages.items():
            if name in content.files or stage == "probe":
                manifest.stages[stage] = StageRecord(status="done", started=now, ended=now)
        for key, found in content.probes.items():
            layers = dict.fromkeys((layer for layer in found if layer in known), NO_PROBE)
            manifest.probes[key] = ProbesRecord(C=1.0, tol=1e-4, max_iter=100, layers=layers)
        summary = manifest.summary
        summary.epochs_done, summary.test_accuracy = content.epochs_done, content.test_accuracy
        summary.saturation, summary.intrinsic_dimension = content.saturation, content.dimension
        summary.probe_accuracy, summary.border_layer = content.probes, content.border

    with run.lock():
        run.commit(content.files, change)
    return run


def as_csv(table: "pd.DataFrame") -> bytes:
    """Return a table as satstore keeps it."""
    return table.to_csv(index=False).encode()


def _means(table: "pd.DataFrame") -> dict[str, float | None]:
    means = table.groupby("layer", sort=False)["eval_accuracy"].mean()
    return {f"{layer}": _number(value) for layer, value in means.items()}


def _number(value: Any) -> float | None:
    return None if value != value else float(value)  # NaN alone differs from itself


def _whole(value: Any) -> int | None:
    return None if value != value else int(value)
