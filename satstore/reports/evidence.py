"""The evidence of a run for advice, gathered without pandas, which the terminal app does not load."""

import math

from satstore.analysis.advice import LEAST_GAIN, TAIL_SHARE, Advice, Evidence, advise
from satstore.reports.blocks import choose_table, place_layers
from satstore.runs.manifest import drawn_layers
from satstore.runs.run import Run
from satstore.runs.targets import class_names


def advise_on(run: Run, least_gain: float = LEAST_GAIN, tail_share: float = TAIL_SHARE) -> Advice:
    """Advise on a run by its curves after the last epoch; see :func:`satstore.analysis.advice.advise`.

    Raises
    ------
    CorruptError
        If a table is not as it was committed.
    """
    return advise(gather(run), least_gain, tail_share)


def gather(run: Run) -> Evidence:
    """Gather the evidence of a run after its last epoch, for the layers that figures show."""
    manifest, summary = run.manifest, run.manifest.summary
    layers = drawn_layers(manifest)
    tables = [key for key in manifest.shown_probes() if key.latents.epoch is None]
    chosen = {record.layer: choose_table(record.form, tables) for record in manifest.layers}
    stopped = {
        row["layer"]
        for key in dict.fromkeys(chosen.values())
        for row in (run.rows(key.table) if key else [])
        if chosen.get(row["layer"]) == key and row.get("converged") == "False" and row["eval_accuracy"]
    }
    accuracy = {
        layer: summary.probe_accuracy[key][layer]
        for layer, key in chosen.items()
        if key is not None and layer in summary.probe_accuracy.get(key, {})
    }
    places = place_layers(manifest) or {}
    dataset, info = manifest.dataset, run.costs() or {"layers": [], "n_parameters": 0, "flops": 0}
    return Evidence(
        layers=layers,
        accuracy=_numbers(accuracy, layers),
        saturation=_numbers(summary.saturation, layers),
        unconverged=[layer for layer in layers if layer in stopped],
        border=summary.border_layer,
        knows_border=run.has_file("receptive_field.csv"),
        n_eval=dataset.n_eval if dataset else 0,
        has_labels=dataset is None or dataset.has_labels or bool(manifest.targets),
        is_recorded=run.is_recorded,
        n_classes=len(class_names(run, manifest.shown_target)),
        test_accuracy=None if manifest.shown_target else summary.test_accuracy,
        resolution=run.config.resolution,
        costs={row["layer"]: (row["n_parameters"], row["flops"]) for row in info["layers"]},
        blocks={layer: place.block for layer, place in places.items() if place.block},
        total=(info["n_parameters"], info["flops"]),
    )


def _numbers(found: "dict[str, float | None]", layers: list[str]) -> list[float]:
    values = [found.get(layer) for layer in layers]
    return [math.nan if value is None else value for value in values] if found else []
