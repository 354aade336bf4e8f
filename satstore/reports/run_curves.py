"""One experiment's curves over its layers, read once from its folder, then at any delta and epoch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.advice import find_tail
from satstore.analysis.spectrum import dimension_table
from satstore.config.experiment import ExperimentConfig
from satstore.config.latent_keys import ProbeKey
from satstore.errors import SatstoreError
from satstore.reports.blocks import Places, choose_table, main_layers, place_layers
from satstore.runs.manifest import LayerRecord, drawn_layers
from satstore.runs.run import Run

Float64 = NDArray[np.float64]
Failed = dict[str, frozenset[tuple[int, int]]]

DELTAS: tuple[float, ...] = (
    *(round(0.5 + 0.02 * i, 2) for i in range(20)),
    *(round(0.9 + 0.01 * i, 2) for i in range(9)),
    *(round(0.99 + 0.001 * i, 3) for i in range(9)),
    *(round(0.999 + 0.0001 * i, 4) for i in range(10)),
)
"""Deltas that curves are read at: from .5 to .9999, finer towards 1, where saturation changes most."""


@dataclass(frozen=True)
class RunCurves:
    """One experiment's curves over its layers, at every epoch and delta.

    Attributes
    ----------
    shown
        Places, among the layers, of those that figures show.
    deltas
        In ascending order, the config's among them.
    dimensions
        Split to intrinsic dimensions (epoch, layer, delta); NaN where the layer has no spectrum.
    probes
        Table of probes, such as ``pool4``, to epoch to accuracy on the eval split (layer).
    receptive_fields
        Layer to its smallest and largest receptive field, in pixels.
    places
        The places of the layers among blocks; None where layers are in a row.
    failed
        Split or table of probes to the pairs of epoch and layer that gave no number: of NaN activations, say.
    problems
        What could not be read, one line each.
    """

    name: str
    config: ExperimentConfig
    path: Path
    layers: tuple[LayerRecord, ...] = ()
    shown: tuple[int, ...] = ()
    n_epochs: int = 0
    delta: float = 0.99
    deltas: tuple[float, ...] = DELTAS
    dimensions: Mapping[str, Float64] = field(default_factory=dict)
    probes: Mapping[str, Mapping[int, Float64]] = field(default_factory=dict)
    metrics: Mapping[str, Sequence[float]] = field(default_factory=dict)
    receptive_fields: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    border: str | None = None
    test_accuracy: float | None = None
    places: Places | None = None
    failed: Mapping[str, frozenset[tuple[int, int]]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def n_features(self) -> Float64:
        """Features of each layer."""
        return np.array([record.n_features for record in self.layers], dtype=float)

    def saturation(self, split: str, epoch: int, place: int) -> Float64:
        """Return the saturation of each layer after an epoch, at the delta of that place."""
        found = self.dimensions.get(split)
        if found is None or not 0 <= epoch < len(found):
            return np.full(len(self.layers), math.nan)
        with np.errstate(divide="ignore", invalid="ignore"):  # an imported layer may have 0 features
            saturation: Float64 = found[epoch, :, place] / self.n_features
        return saturation

    def probe(self, table: str, epoch: int) -> Float64:
        """Return the accuracy of each layer's probe after an epoch; NaN where none was fitted."""
        return self.probes.get(table, {}).get(epoch, np.full(len(self.layers), math.nan))

    def accuracy(self, epoch: int) -> Float64:
        """Return the accuracy of each layer's probe after an epoch, of the first table that fits it."""
        keys = [ProbeKey.parse(table) for table in self.probes]
        keys = [key for key in keys if key.prefix == keys[0].prefix]  # those of figures come first
        chosen = [choose_table(record.form, keys) for record in self.layers]
        values = {key: self.probe(str(key), epoch) for key in keys}
        return np.array([math.nan if key is None else values[key][i] for i, key in enumerate(chosen)])

    def main_layers(self, layers: Sequence[int]) -> tuple[str, list[int]]:
        """Return the part that stands for the run where there is room for one curve, and its layers."""
        by_name = {self.layers[place].layer: place for place in layers}
        part, names = main_layers(self.places, list(by_name))
        return part, [by_name[name] for name in names]

    def model_accuracy(self, epoch: int) -> float | None:
        """Return the model's test accuracy after an epoch."""
        values = self.metrics.get("eval_accuracy", ())
        if 0 <= epoch < len(values):
            return values[epoch]
        return self.test_accuracy if epoch == self.n_epochs - 1 else None

    def tail_start(self, epoch: int, place: int, layers: Sequence[int]) -> int | None:
        """Return where the tail starts among these layers, by the first probes and saturation on train."""
        if not self.probes:
            return None
        accuracy = self.accuracy(epoch)[list(layers)]
        saturation = self.saturation("train", epoch, place)[list(layers)]
        return find_tail([*accuracy], [*saturation])


def read_curves(path: Path) -> RunCurves:
    """Read an experiment's curves; what is missing is left out, and what is damaged is named.

    Raises
    ------
    SatstoreError
        If there is no such run, or its manifest can't be read.
    """
    run = Run(path)
    config, manifest = run.config, run.manifest
    problems: list[str] = []
    names = run.layers
    drawn = set(drawn_layers(manifest))
    deltas = tuple(sorted({*DELTAS, config.delta}))
    failed: Failed = {}
    return RunCurves(
        name=run.name,
        config=config,
        path=path,
        layers=tuple(manifest.layers),
        shown=tuple(place for place, name in enumerate(names) if name in drawn),
        n_epochs=manifest.summary.epochs_done,
        delta=config.delta,
        deltas=deltas,
        dimensions=_read_dimensions(run, deltas, failed, problems),
        probes=_read_probes(run, failed, problems),
        metrics={name: _numbers(texts) for name, texts in _read_table(run, "metrics", problems).items()},
        receptive_fields=_read_receptive_fields(run, problems),
        border=manifest.summary.border_layer,
        test_accuracy=manifest.summary.test_accuracy,
        places=place_layers(manifest),
        failed=failed,
        problems=tuple(problems),
    )


def _read_dimensions(
    run: Run, deltas: Sequence[float], failed: Failed, problems: list[str]
) -> dict[str, Float64]:
    found = {}
    if run.last_epoch < 0:
        return {}
    for split in ("train", "eval"):
        try:
            spectra = run.spectra(split)
        except SatstoreError as error:
            problems.append(str(error))
            continue
        n_epochs = max(map(len, spectra.values()), default=0)
        table = np.full((n_epochs, len(run.layers), len(deltas)), math.nan)
        bad = set()
        for place, layer in enumerate(run.layers):
            if layer in spectra:
                rows = dimension_table(spectra[layer], deltas)
                table[: len(rows), place] = rows
                bad |= {(int(epoch), place) for epoch in np.flatnonzero(np.isnan(rows[:, 0]))}
        if spectra:
            found[split], failed[split] = table, frozenset(bad)
    return found


def _read_probes(run: Run, failed: Failed, problems: list[str]) -> dict[str, dict[int, Float64]]:
    found: dict[str, dict[int, Float64]] = {}
    for key in run.manifest.probes:
        name = str(key.at(None))
        columns = _read_table(run, key.table, problems)
        accuracy: dict[str, list[float]] = {}
        values = _numbers(columns.get("eval_accuracy", ()))
        for layer, value in zip(columns.get("layer", ()), values, strict=True):
            accuracy.setdefault(layer, []).append(value)
        means = [float(np.mean(accuracy[layer])) if layer in accuracy else math.nan for layer in run.layers]
        epoch = run.last_epoch if key.latents.epoch is None else key.latents.epoch
        if accuracy:
            found.setdefault(name, {})[epoch] = np.array(means)
            bad = {
                (epoch, i) for i, layer in enumerate(run.layers) if layer in accuracy and math.isnan(means[i])
            }
            failed[name] = failed.get(name, frozenset()) | bad
    shown = {str(key.at(None)) for key in run.manifest.shown_probes()}
    return dict(sorted(found.items(), key=lambda item: item[0] not in shown))  # those of figures first


def _read_receptive_fields(run: Run, problems: list[str]) -> dict[str, tuple[float, float]]:
    table = _read_table(run, "receptive_field", problems)
    low, high = (_numbers(table.get(f"receptive_field_{end}", ())) for end in ("min", "max"))
    return dict(zip(table.get("layer", ()), zip(low, high, strict=True), strict=True))


def _read_table(run: Run, name: str, problems: list[str]) -> dict[str, list[str]]:
    """Return a table's columns; of one that isn't there, none. Not with pandas: it takes 40 MB."""
    try:
        rows = run.rows(name)
    except SatstoreError as error:
        problems.append(str(error))
        return {}
    return {column: [row[column] for row in rows] for column in (rows[0] if rows else ())}


def _numbers(texts: Iterable[str]) -> list[float]:
    return [float(text or "nan") for text in texts]
