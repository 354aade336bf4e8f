"""Write the tables of probes, and commit one layer at a time."""

import csv
import hashlib
import io
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from satstore.config.latent_keys import ProbeKey
from satstore.runs.manifest import Manifest, ProbesRecord
from satstore.runs.run import Run

if TYPE_CHECKING:
    from satstore.stages.probe.job import ProbeResult

COLUMNS = (
    "layer",
    "n_features",
    "train_accuracy",
    "eval_accuracy",
    "top5",
    "train_loss",
    "objective",
    "n_iter",
    "converged",
    "duration_s",
    "peak_memory_bytes",
    "error",
)
"""A table's columns; ``y`` and ``x`` follow the layer where each position has a probe of its own."""


def latents_digest(run: Run, key: ProbeKey, layer: str) -> str | None:
    """Return the digest of the latents that a layer's probe is made with; None if they aren't stored."""
    record = run.manifest.latents.get(key.latents)
    if record is None:
        return None
    if not record.layers:
        return record.digest
    digests = [record.layers.get(split, {}).get(layer) for split in ("train", "eval")]
    return None if None in digests else hashlib.sha256(" ".join(map(str, digests)).encode()).hexdigest()


def format_table(run: Run, key: ProbeKey, rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return a table as CSV, its rows in forward order of the layers, then by position."""
    forward = {layer: index for index, layer in enumerate(run.layers)}
    positions = ("y", "x") if key.latents.pooling == "pixelwise" else ()
    text = io.StringIO()
    table = csv.DictWriter(
        text, ("layer", *positions, *COLUMNS[1:]), extrasaction="ignore", lineterminator="\n"
    )
    table.writeheader()
    table.writerows(
        sorted(
            rows, key=lambda row: (forward[row["layer"]], *(int(row.get(axis) or 0) for axis in positions))
        )
    )
    return text.getvalue().encode()


def discard_old_probes(run: Run, key: ProbeKey, layers: Collection[str], settings: ProbesRecord) -> None:
    """Discard the old probes of some layers, and all with other settings; record the new settings."""
    from satstore.storage.zarr import AnalysisStore

    known = run.manifest.probes.get(key, settings)
    same = known.settings == settings.settings and run.has_file(key.file)
    kept = {layer: of for layer, of in known.layers.items() if same and layer not in layers}
    # Unless some are kept, the old table isn't read: it may be the damaged one that is to be replaced.
    rows = [row for row in run.rows(key.table) if row["layer"] in kept] if kept else []

    def change(manifest: Manifest) -> None:
        if not rows:
            manifest.files.pop(key.file, None)
        manifest.probes[key] = settings.model_copy(update={"layers": kept})
        accuracy = manifest.summary.probe_accuracy.pop(key, {})
        if kept:
            manifest.summary.probe_accuracy[key] = {layer: accuracy.get(layer) for layer in kept}
        gone = [layer for layer in run.layers if layer not in kept]
        old = tuple(f"probe: {describe_layer_probe(key, layer)} " for layer in gone)
        manifest.warnings = [line for line in manifest.warnings if not line.startswith(old)]

    run.commit({key.file: format_table(run, key, rows)} if rows else {}, change)
    if not kept:  # what lies there may be the damaged group that is to be replaced
        AnalysisStore(run.analysis_path, run.commits).remove_probes(str(key))


def commit_layer(run: Run, key: ProbeKey, layer: str, result: "ProbeResult") -> None:
    """Commit one layer: its arrays, then its rows; its accuracy in lists is the mean over its positions."""
    from satstore.storage.zarr import AnalysisStore

    if result.arrays:
        AnalysisStore(run.analysis_path, run.commits).write_probe(str(key), layer, result.arrays)
    warn_of_layer(run, key, layer, result.rows)
    rows = [row for row in run.rows(key.table) if row["layer"] != layer] + list(result.rows)
    found = [row["eval_accuracy"] for row in result.rows if "eval_accuracy" in row]
    digest = latents_digest(run, key, layer)
    assert digest is not None

    def change(manifest: Manifest) -> None:
        manifest.probes[key].layers[layer] = digest
        accuracy = sum(found) / len(found) if found else None
        manifest.summary.probe_accuracy.setdefault(key, {})[layer] = accuracy

    run.commit({key.file: format_table(run, key, rows)}, change)


def warn_of_layer(run: Run, key: ProbeKey, layer: str, rows: Collection[Mapping[str, Any]]) -> None:
    """Warn of a layer that has no probe, or whose probes did not converge."""
    name = describe_layer_probe(key, layer)
    for row in rows:
        if row.get("error"):
            run.warn("probe", f"{name} has no probe: {row['error']}")
    stopped = [row["n_iter"] for row in rows if not row["converged"] and not row.get("error")]
    if stopped:
        count = f" at {len(stopped)} of {len(rows)} positions" if len(rows) > 1 else ""
        run.warn("probe", f"{name} did not converge in {max(stopped)} iterations{count}")


def describe_layer_probe(key: ProbeKey, layer: str) -> str:
    """Return the name of a layer's probe, which its warnings begin with."""
    return f"layer {layer} at {key}"
