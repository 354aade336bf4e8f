"""What the screen of a run draws of a network of blocks: a curve for each part, over the depth."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from rich.text import Text

from satstore.reports.blocks import OUTSIDE, Places, choose_limits, drawn_parts, name_depths, sort_tables
from satstore.reports.run_curves import Float64, RunCurves
from satstore.system.text import FAILED, clean
from tui.colors import CURSOR, MARKERS, MODEL, PARTS
from tui.layers import View, join_entries, make_layer_rows, make_reference_lines, percent
from tui.widgets.curve_plot import Curve, ReferenceLine

LONGEST = 11
"""The letters of a name on the axis."""


def view_blocks(data: RunCurves, view: View, *, has_room: bool) -> "list[BlockCurvesView]":
    """Return what is drawn of a network of blocks, a plot each; empty where layers are shown in a row.

    Parameters
    ----------
    has_room
        For two plots: saturation above, and a table of probes. Else it is one of these quantities at a time.
    """
    tables = sort_tables({name: data.probe(name, view.epoch) for name in data.probes})
    quantities = [*([None] if data.dimensions else []), *tables]
    if data.places is None or not view.by_block or not quantities:
        return []
    above = quantities[:1] if has_room and None in quantities and len(quantities) > 1 else []
    choices = quantities[len(above) :]
    shown = [*above, choices[view.n_turns % len(choices)]]
    places = data.places
    return [BlockCurvesView(data, places, view, key, key in choices and len(choices) > 1) for key in shown]


@dataclass(frozen=True)
class BlockCurvesView:
    """A quantity of the parts of blocks, at an epoch and a delta.

    Attributes
    ----------
    table
        The table of probes; None for saturation.
    has_more
        Whether another quantity can be drawn in its place.
    """

    data: RunCurves
    places: Places
    view: View
    table: str | None
    has_more: bool = False

    @cached_property
    def values(self) -> Float64:
        """The quantity, by layer of the run."""
        if self.table is None:
            return self.data.saturation("train", self.view.epoch, self.view.place)
        return self.data.probe(self.table, self.view.epoch)

    @cached_property
    def failed(self) -> set[int]:
        """The layers that gave no number."""
        pairs = self.data.failed.get(self.table or "train", ())
        return {layer for epoch, layer in pairs if epoch == self.view.epoch}

    @cached_property
    def parts(self) -> list[tuple[str, list[int], str, str]]:
        """Each part that is drawn, with its layers, its colour and its marker."""
        shown = {self.data.layers[index].layer: index for index in self.view.layers}
        return [
            (
                part,
                [shown[layer] for layer in layers],
                CURSOR if part == OUTSIDE else PARTS[number],
                "●" if part == OUTSIDE else MARKERS[number],
            )
            for number, (part, layers) in enumerate(drawn_parts(self.places, shown).items())
        ]

    @cached_property
    def depths(self) -> list[int]:
        """The depths that are shown."""
        return sorted({self.depth(layer) for layer in self.view.layers})

    def depth(self, layer: int) -> int:
        """Return the depth of a layer of the run."""
        return self.places[self.data.layers[layer].layer].depth

    def curves(self) -> Iterator[Curve]:
        """Yield a curve for each part, and crosses at the foot where a layer gave no number."""
        for part, layers, color, marker in reversed(self.parts):  # the whole blocks over the others
            depths, values = [self.depth(layer) for layer in layers], self.values[layers]
            if np.isfinite(values).any():
                yield Curve(part, depths, [*values], color, marker, is_line=part != OUTSIDE)
            failed = [self.depth(layer) for layer in layers if layer in self.failed]
            if failed:
                label = f"{part}: no number"
                yield Curve(label, failed, [self.y_limits[0]] * len(failed), color, FAILED, is_line=False)

    def reference_lines(self) -> list[ReferenceLine]:
        """Return those over the layers in a row, at their depths; the model's accuracy beside probes only."""
        lines = []
        for line in make_reference_lines(self.data, self.view):
            if line.is_vertical:
                place = self.view.layers[
                    int(np.ceil(line.at))
                ]  # the tail starts half a place before its first
                at = self.depth(place) - (0.5 if line.label == "tail" else 0.0)
                lines.append(ReferenceLine(line.label, at, line.color, line.marker))
            elif self.table is not None:
                lines.append(line)
        return lines

    @cached_property
    def y_limits(self) -> tuple[float, float]:
        """Where the axis begins and ends."""
        values = [float(value) for _, layers, *_ in self.parts for value in self.values[layers]]
        if self.table is None:
            return 0.0, min(1.0, choose_limits(values)[1])
        reached = self.data.model_accuracy(self.view.epoch)
        low, high = choose_limits(values if reached is None else [*values, reached])
        return low, min(1.0, high)

    def axis(self) -> tuple[list[str], frozenset[int]]:
        """Return the name of each depth, of a layer of no block its end, and the depths that are blocks."""
        _, names = name_depths(self.places)
        blocks = frozenset(place.depth for place in self.places.values() if place.block)
        return [shorten_end(clean(name), LONGEST) for name in names], blocks

    def describe(self, width: int) -> Text:
        """Return the values of the parts at the cursor's depth, each beside its mark in the plot."""
        depth = self.depth(self.view.layers[self.view.cursor])
        title = "saturation" if self.table is None else f"probe {self.table}"
        entries = [("↕", "dim", f"{title} (t)" if self.has_more else title)]
        for part, layers, color, marker in self.parts:
            for layer in (layer for layer in layers if self.depth(layer) == depth):
                shown = FAILED if layer in self.failed else percent(float(self.values[layer]))
                entries.append((marker, color, f"{part} {shown}"))
        return join_entries(entries, width)


def shorten_end(name: str, n_most: int) -> str:
    """Return a name, or the end of its last part with an ellipsis in front."""
    last = name.rpartition(".")[2] if len(name) > n_most else name
    return last if len(last) <= n_most else f"…{last[1 - n_most :]}"


def describe_layer_values(data: RunCurves, view: View) -> Text:
    """Return all values of the layer under the cursor, in a line."""
    [row] = make_layer_rows(data, View(view.epoch, view.place, (view.layers[view.cursor],)))
    found = {"train": ("saturation", row.saturation), "eval": ("eval", row.saturation_eval)}
    found = {split: values for split, values in found.items() if split in data.dimensions}
    tables = [name for name, value in row.probes.items() if name in row.failed or not np.isnan(value)]
    found |= {name: (f"probes {name}" if name == tables[0] else name, row.probes[name]) for name in tables}
    shown = [
        f"{clean(label)} {FAILED if key in row.failed else percent(value)}"
        for key, (label, value) in found.items()
    ]
    reached = data.model_accuracy(view.epoch)
    model = Text() if reached is None else Text.assemble((" ╌ ", MODEL), f"model {percent(reached)}")
    return Text.assemble(("▸ ", "dim"), ", ".join(shown), model)
