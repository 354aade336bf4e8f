"""The tables of probes: their rows, which layers they count as fitted, and how a layer is committed."""

import csv
import hashlib
import io
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from satstore.config.keys import ProbeKey
from satstore.runs.manifest import Manifest, ProbesRecord
from satstore.runs.run import Run
from satstore.stages.probe.fit import Fitted

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
    """Return the digest of the latents that a layer's probe is fitted on and tried on; None if not stored."""
    record = run.manifest.latents.get(key.latents)
    if record is None:
        return None
    splits: Mapping[str, Mapping[str, str]] = getattr(record, "layers", {})
    if not splits:
        return record.digest
    digests = [splits.get(split, {}).get(layer) for split in ("train", "eval")]
    return None if None in digests else hashlib.sha256(" ".join(map(str, digests)).encode()).hexdigest()


def write_rows(run: Run, key: ProbeKey, rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return a table with its rows in forward order of the layers, then by position."""
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


def begin(run: Run, key: ProbeKey, layers: Collection[str], settings: ProbesRecord) -> None:
    """Let go of layers' old probes, and of all that had other settings; note the new settings."""
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
        old = tuple(f"probe: {describe(key, layer)} " for layer in run.layers if layer not in kept)
        manifest.warnings = [line for line in manifest.warnings if not line.startswith(old)]

    run.commit({key.file: write_rows(run, key, rows)} if rows else {}, change)
    if not kept:  # what lies there may be the damaged group that is to be replaced
        AnalysisStore(run.analysis_path, run.commits).remove_probes(str(key))


def commit(run: Run, key: ProbeKey, layer: str, fitted: Fitted) -> None:
    """Commit one layer: its arrays, then its rows; its accuracy in lists is the mean over its positions."""
    from satstore.storage.zarr import AnalysisStore

    if fitted.arrays:
        AnalysisStore(run.analysis_path, run.commits).write_probe(str(key), layer, fitted.arrays)
    warn(run, key, layer, fitted.rows)
    rows = [row for row in run.rows(key.table) if row["layer"] != layer] + list(fitted.rows)
    found = [row["eval_accuracy"] for row in fitted.rows if "eval_accuracy" in row]
    digest = latents_digest(run, key, layer)
    assert digest is not None

    def change(manifest: Manifest) -> None:
        manifest.probes[key].layers[layer] = digest
        accuracy = sum(found) / len(found) if found else None
        manifest.summary.probe_accuracy.setdefault(key, {})[layer] = accuracy

    run.commit({key.file: write_rows(run, key, rows)}, change)


def warn(run: Run, key: ProbeKey, layer: str, rows: Collection[Mapping[str, Any]]) -> None:
    """Tell of a layer that has no probe, or of its probes that did not converge."""
    for row in rows:
        if row.get("error"):
            run.warn("probe", f"{describe(key, layer)} has no probe: {row['error']}")
    stopped = [row["n_iter"] for row in rows if not row["converged"] and not row.get("error")]
    if stopped:
        count = f" at {len(stopped)} of {len(rows)} positions" if len(rows) > 1 else ""
        run.warn("probe", f"{describe(key, layer)} did not converge in {max(stopped)} iterations{count}")


def describe(key: ProbeKey, layer: str) -> str:
    """Return how warnings begin that are of a layer's probe."""
    return f"layer {layer} at {key}"
