"""What the screens of a run draw of its curves, and the texts and tables beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from rich.text import Text

from satstore.reports.colors import PROBES, TRAIN
from satstore.reports.colors import SATURATION as SATURATION_EVAL
from satstore.reports.listing.table_layout import Cell, Column
from satstore.reports.run_curves import RunCurves
from satstore.system.text import FAILED, UNKNOWN, clean
from tui.colors import BORDER, CURSOR, MARKERS, MODEL, SATURATION, TAIL
from tui.widgets.curve_plot import Curve, ReferenceLine

SPLITS = (("train", "saturation", SATURATION, "●"), ("eval", "saturation, eval", SATURATION_EVAL, "○"))


@dataclass(frozen=True)
class View:
    """The epoch, the delta and the layers of a run that are shown."""

    epoch: int  # counted from 0
    place: int  # index of the delta among the run's
    layers: tuple[int, ...]  # indices among the run's
    cursor: int = 0  # index among the layers shown
    by_block: bool = True  # whether layers that are in blocks are grouped by block
    n_turns: int = 0  # how often the quantity was changed that parts of blocks are drawn of


@dataclass(frozen=True)
class LayerRow:
    """A layer's values at an epoch and a delta; NaN where they are missing."""

    index: int
    layer: str
    kind: str
    n_features: int
    shape: tuple[int, ...]
    dimension: float
    saturation: float
    saturation_eval: float
    probes: dict[str, float]
    receptive_field: tuple[float, float] | None
    failed: frozenset[str] = frozenset()  # the splits and tables that gave no number
    block: tuple[str, str] = ("", "")  # the block's name and its style: dim, but in the block's first row
    part: str = ""


def make_layer_rows(data: RunCurves, view: View) -> list[LayerRow]:
    """Return a row per layer that is shown."""
    train, evaluated = (data.saturation(split, view.epoch, view.place) for split in ("train", "eval"))
    probes = {table: data.probe(table, view.epoch) for table in data.probes}
    rows: list[LayerRow] = []
    for place in view.layers:
        record = data.layers[place]
        block, part = _find_block(data, record.layer)
        style = "dim" if rows and rows[-1].block[0] == block else ""
        rows.append(
            LayerRow(
                place,
                record.layer,
                record.kind,
                record.n_features,
                tuple(record.output_shape),
                round(train[place] * record.n_features) if np.isfinite(train[place]) else math.nan,
                float(train[place]),
                float(evaluated[place]),
                {table: float(accuracy[place]) for table, accuracy in probes.items()},
                data.receptive_fields.get(record.layer),
                frozenset(key for key, found in data.failed.items() if (view.epoch, place) in found),
                (block, style),
                part,
            )
        )
    return rows


def _find_block(data: RunCurves, layer: str) -> tuple[str, str]:
    """Return the names of a layer's block, or its own where it is of no block, and of its part."""
    place = None if data.places is None else data.places[layer]
    return (layer, "") if place is None else (place.block or layer, place.part)


def make_curves(data: RunCurves, view: View) -> list[Curve]:
    """Return saturation of both splits and the accuracy of the probes over the layers."""
    curves = []
    x = list(range(len(view.layers)))
    for split, label, color, marker in reversed(SPLITS):
        if split in data.dimensions:
            y = data.saturation(split, view.epoch, view.place)[list(view.layers)]
            curves += [Curve(label, x, [*y], color, marker), *_mark_failed(data, view, split, color)]
    for (table, _), color, marker in zip(data.probes.items(), cycle(PROBES), cycle(MARKERS), strict=False):
        y = data.probe(table, view.epoch)[list(view.layers)]
        if np.isfinite(y).any():
            curves.append(Curve(f"probe {table}", x, [*y], color, marker))
        curves += _mark_failed(data, view, table, color)
    return curves


def _mark_failed(data: RunCurves, view: View, key: str, color: str) -> list[Curve]:
    """Return crosses at the foot of the plot, at layers that gave no number."""
    failed = data.failed.get(key, frozenset())
    x = [i for i, place in enumerate(view.layers) if (view.epoch, place) in failed]
    return [Curve(f"{key}: no number", x, [0.0] * len(x), color, FAILED, is_line=False)] if x else []


def make_reference_lines(data: RunCurves, view: View) -> list[ReferenceLine]:
    """Return the cursor, the border layer, where the tail starts, and the model's accuracy."""
    lines = []
    names = [data.layers[place].layer for place in view.layers]
    if names:
        lines.append(ReferenceLine("cursor", view.cursor, CURSOR, "│"))
    if data.border in names:
        lines.append(ReferenceLine("border", names.index(data.border), BORDER, "┊"))
    tail = data.tail_start(view.epoch, view.place, view.layers)
    if tail is not None:
        lines.append(ReferenceLine("tail", tail - 0.5, TAIL, "╎"))
    accuracy = data.model_accuracy(view.epoch)
    if accuracy is not None:
        lines.append(ReferenceLine("model", accuracy, MODEL, "╌", is_vertical=False))
    return lines


def percent(value: float | None) -> str:
    """Return a share in percent, a dash where it isn't known."""
    return UNKNOWN if value is None or math.isnan(value) else f"{value:.1%}"


def describe_layer(data: RunCurves, view: View) -> Text:
    """Return which layer is under the cursor, in a line."""
    record = data.layers[view.layers[view.cursor]]
    shape = " × ".join(map(str, record.output_shape))
    text = Text.assemble(
        (f"▸ {view.cursor + 1}/{len(view.layers)} ", "dim"),
        (clean(record.layer), "bold"),
        f"  {clean(record.kind)}, {record.n_features} features, output {shape}",
        no_wrap=True,
        overflow="ellipsis",
    )
    if record.layer in data.receptive_fields:
        low, high = data.receptive_fields[record.layer]
        text.append(f", sees {low:.0f} px" if low == high else f", sees {low:.0f} to {high:.0f} px")
    return text


def describe_values(data: RunCurves, view: View, width: int) -> Text:
    """Return the values under the cursor, each beside its mark in the plot, in lines of that width."""
    row = make_layer_rows(data, View(view.epoch, view.place, (view.layers[view.cursor],)))[0]
    found = {"train": row.saturation, "eval": row.saturation_eval}
    entries = [
        (marker, color, f"{label} {FAILED if split in row.failed else percent(found[split])}")
        for split, label, color, marker in SPLITS
        if split in data.dimensions
    ]
    for (table, accuracy), color, marker in zip(
        row.probes.items(), cycle(PROBES), cycle(MARKERS), strict=False
    ):
        shown = FAILED if table in row.failed else percent(accuracy)
        entries.append((marker, color, f"probe {table} {shown}"))
    for line in make_reference_lines(data, view):
        if line.label == "model":
            entries.append(("╌", MODEL, f"model {percent(line.at)}"))
        elif line.label == "border":
            entries.append(("┊", BORDER, f"border {data.border}"))
        elif line.label == "tail":
            start = data.layers[view.layers[math.ceil(line.at)]].layer
            entries.append(("╎", TAIL, f"tail from {start}"))
    return join_entries(entries, width)


def join_entries(entries: Sequence[tuple[str, str, str]], width: int) -> Text:
    """Return markers with their texts, in lines that break only between them."""
    text, left = Text(no_wrap=True), width
    for marker, color, content in entries:
        shown = clean(content)
        length = len(shown) + 5
        if left < width and length - 3 > left:
            text.append("\n")
            left = width
        text.append(f"{marker} ", color).append(shown + "   ")
        left -= length
    return text


def make_columns(tables: Sequence[str], *, by_block: bool = False) -> list[Column[LayerRow]]:
    """Return the columns of the table of layers; by block, with two for a layer's name."""

    def column(key: str, label: str, width: int, rank: int, form: str, source: str = "") -> Column[LayerRow]:
        def cell(row: LayerRow) -> str:
            value = row.probes[key] if source == key else getattr(row, key)
            return FAILED if source in row.failed else _write(value, form)

        return Column(key, label, cell, width, width, rank=rank, align="right")

    layer = [Column[LayerRow]("layer", "layer", lambda row: clean(row.layer), 12, 44, rank=0)]
    block = [
        Column[LayerRow]("block", "block", _draw_block, 10, 30, rank=0, n_last=-1),
        Column[LayerRow]("part", "part", lambda row: clean(row.part), 11, 30, rank=0, n_last=-1),
    ]
    return [
        Column[LayerRow]("index", "#", lambda row: f"{row.index + 1}", 4, 4, rank=0, align="right"),
        *(block if by_block else layer),
        Column[LayerRow]("kind", "kind", lambda row: clean(row.kind), 8, 8, rank=6),
        column("n_features", "features", 8, 4, "{}"),
        column("dimension", "dimension", 9, 5, "{:.0f}", "train"),
        column("saturation", "saturation", 10, 1, "{:.1%}", "train"),
        column("saturation_eval", "eval", 6, 3, "{:.1%}", "eval"),
        *(column(name, clean(f"probe {name}"), len(name) + 6, 2, "{:.1%}", name) for name in tables),
        Column("receptive_field", "sees px", _describe_receptive_field, 11, 11, rank=7),
    ]


def _draw_block(row: LayerRow) -> Cell:
    name, style = row.block
    return ((clean(name), style),)


def _write(value: float, form: str) -> str:
    return UNKNOWN if math.isnan(value) else form.format(value)


def _describe_receptive_field(row: LayerRow) -> str:
    if row.receptive_field is None:
        return ""
    low, high = row.receptive_field
    return f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}"


def training_curves(data: RunCurves) -> tuple[list[Curve], list[Curve]]:
    """Return accuracies and losses over the epochs."""
    colors = {"train": TRAIN, "eval": MODEL}

    def curves(of_accuracy: bool) -> list[Curve]:
        found = []
        for name, values in data.metrics.items():
            split = name.partition("_")[0]
            if split in colors and ("loss" in name) != of_accuracy:
                first = name in ("train_accuracy", "eval_accuracy", "train_loss", "eval_loss")
                marker = ("●" if split == "train" else "■") if first else "·"
                found.append(Curve(name, list(range(len(values))), values, colors[split], marker))
        return found

    return curves(True), curves(False)


def describe_curves(curves: Sequence[Curve], place: int, width: int) -> Text:
    """Return a legend with the values at a place, in lines of that width."""

    def write(curve: Curve) -> str:
        value = curve.y[place] if place < len(curve.y) else math.nan
        shown = percent(value) if "loss" not in curve.label else _write(value, "{:.4g}")
        return f"{curve.label.replace('_', ' ')} {shown}"

    return join_entries([(curve.marker, curve.color, write(curve)) for curve in curves], width)
