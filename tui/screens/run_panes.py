"""The tabs of a run's screen that draw its curves at an epoch and a delta."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import TabPane

from satstore.config.latent_keys import ProbeKey
from satstore.errors import NotFoundError
from satstore.reports.run_curves import RunCurves
from satstore.runs.run import Run
from tui.blocks import BlockCurvesView, describe_layer_values, view_blocks
from tui.colors import BORDER, CURSOR, SATURATION
from tui.layers import (
    LayerRow,
    View,
    describe_curves,
    describe_layer,
    describe_values,
    make_columns,
    make_curves,
    make_layer_rows,
    make_reference_lines,
    training_curves,
)
from tui.threads import run_in_thread
from tui.widgets.curve_plot import Curve, CurvePlot, ReferenceLine
from tui.widgets.heat_map import HeatMap
from tui.widgets.plain import Static
from tui.widgets.table import Table

RUN_HELP = """\
## A run

Saturation and probe accuracy over the layers, in forward order.

- `←` `→` move **delta**: saturation follows at once, from the stored spectra.
- `[` `]` scrub through the **epochs** of training.
- `↑` `↓`, `j` `k` move the **cursor** over the layers; its values are read out above the plot.
- Of a network of blocks, the x axis is the **depth**, and a part of the blocks is a curve; `t` draws the next
  quantity, `b` shows all layers in a row.
- `1` to `9` choose a tab; `a` shows all layers, shortcuts and the last Linear too.
- `e` exports the plot or the table, `y` copies the command that shows this run.
- `n` starts a stage, `x` ends this run's job, `l` shows its log.

The dashed line is the model's accuracy. `┊` is the border layer: the first conv whose input sees more than
the image. `╎` is where the tail starts: from there on no probe gains a point, and saturation is under half of
the median.
"""

TWO_PLOTS = 24
"""The height of a tab from which on it has room for two plots."""


class RunPane(TabPane):
    """A tab of a run's screen."""

    TITLE: ClassVar[str] = ""  # in lower case, the tab's id

    def __init__(self) -> None:
        super().__init__(self.TITLE, id=self.TITLE.lower())

    def draw(self, data: RunCurves, view: View) -> None:
        """Draw the curves at an epoch and a delta."""


class LayerPlot(CurvePlot):
    """The plot over the layers."""

    HELP = RUN_HELP + "\n" + (CurvePlot.HELP or "")


class LayersPane(RunPane):
    """Both curves over the layers, and the values under the cursor."""

    TITLE = "Layers"

    def compose(self) -> ComposeResult:
        """Lay the tab out."""
        yield Static(id="layer")
        yield Static(id="values")
        yield LayerPlot(id="layer-plot")
        yield LayerPlot(id="second-plot")

    def draw(self, data: RunCurves, view: View) -> None:
        """Draw the curves at an epoch and a delta."""
        # Without a new layout, which would take longer than all else at every key.
        self.query_one("#layer", Static).update(describe_layer(data, view), layout=False)
        views = view_blocks(data, view, has_room=self.size.height >= TWO_PLOTS)
        self.set_class(bool(views), "-by-block")
        self.set_class(len(views) > 1, "-two-plots")
        if views:
            self._draw_blocks(views)
        else:
            self._draw_in_a_row(data, view)

    def _draw_blocks(self, views: Sequence[BlockCurvesView]) -> None:
        """Draw a plot of each quantity, and its values at the cursor."""
        lines = [line for view in views for line in view.describe(self.screen.size.width - 2).split()]
        values = Text("\n").join([*lines[:2], describe_layer_values(views[0].data, views[0].view)])
        self.query_one("#values", Static).update(values, layout=False)
        for plot, view in zip(self.query(LayerPlot), views, strict=False):
            names, numbers = view.axis()
            plot.draw(
                list(view.curves()),
                view.reference_lines(),
                x_limits=(view.depths[0] - 0.5, view.depths[-1] + 0.5),
                y_limits=view.y_limits,
                names=names,
                numbers=numbers,
            )

    def _draw_in_a_row(self, data: RunCurves, view: View) -> None:
        values = describe_values(data, view, self.screen.size.width - 2)
        self.query_one("#values", Static).update(values, layout=False)
        self.query_one("#layer-plot", CurvePlot).draw(
            make_curves(data, view),
            make_reference_lines(data, view),
            x_limits=(-0.5, len(view.layers) - 0.5),
            y_limits=(0.0, 1.0),
            names=[data.layers[place].layer for place in view.layers],
        )


class TrainingPane(RunPane):
    """Accuracies and losses over the epochs."""

    TITLE = "Training"

    def compose(self) -> ComposeResult:
        """Lay the tab out."""
        yield Static(id="training-values")
        with Horizontal(id="training-plots"):
            yield CurvePlot(id="accuracy-plot")
            yield CurvePlot(id="loss-plot")

    def draw(self, data: RunCurves, view: View) -> None:
        """Draw the curves at an epoch and a delta."""
        accuracy, loss = training_curves(data)
        values = describe_curves([*accuracy, *loss], view.epoch, self.screen.size.width - 2)
        self.query_one("#training-values", Static).update(values)
        top = max((v for curve in loss for v in curve.y if math.isfinite(v)), default=1.0)
        for selector, curves, highest in (
            ("#accuracy-plot", accuracy, 1.0),
            ("#loss-plot", loss, 1.05 * top),
        ):
            self.query_one(selector, CurvePlot).draw(
                curves,
                [ReferenceLine("epoch", view.epoch, CURSOR, "│")],
                x_limits=(-0.2, max(1, data.n_epochs - 1) + 0.2),
                y_limits=(0.0, highest),
                names=[f"{epoch + 1}" for epoch in range(data.n_epochs)],
            )


class SpectrumPane(RunPane):
    """The spectrum of the layer under the cursor."""

    TITLE = "Spectrum"

    def __init__(self) -> None:
        super().__init__()
        self._wanted: tuple[RunCurves, View] | None = None

    def compose(self) -> ComposeResult:
        """Lay the tab out."""
        yield Static(id="spectrum-layer")
        yield CurvePlot(id="spectrum-plot")

    def draw(self, data: RunCurves, view: View) -> None:
        """Read the layer under the cursor in a thread, then draw it."""
        self._wanted = (data, view)
        run_in_thread(self.app, lambda: self._read(data, view), "spectrum")

    def _read(self, data: RunCurves, view: View) -> None:
        layer = data.layers[view.layers[view.cursor]].layer
        spectra = Run(data.path).spectra("train", [layer])
        if layer in spectra and view.epoch < len(spectra[layer]):
            self.app.call_from_thread(self._draw, data, view, spectra[layer][view.epoch])

    def _draw(self, data: RunCurves, view: View, eigenvalues: NDArray[np.float64]) -> None:
        if not self.is_attached or self._wanted != (data, view):
            return
        shares = eigenvalues / max(float(eigenvalues.sum()), 1e-300)
        logs = np.log10(np.maximum(shares, 1e-12))
        row = make_layer_rows(data, View(view.epoch, view.place, (view.layers[view.cursor],)))[0]
        text = describe_layer(data, view)
        delta = data.deltas[view.place]
        text.append(f"\n{row.dimension:.0f} of {row.n_features} directions hold {delta:g} of the variance")
        text.append("; shares of the eigenvalues as powers of ten, the largest first", "dim")
        self.query_one("#spectrum-layer", Static).update(text)
        self.query_one(CurvePlot).draw(
            [Curve("share", list(range(1, len(logs) + 1)), [*logs], SATURATION)],
            [ReferenceLine("dimension", row.dimension, BORDER, "┊")],
            x_limits=(0.0, len(logs) + 1.0),
            y_limits=(max(-12.0, math.floor(float(logs.min()))), 0.0),
        )


class LayersTable(Table[LayerRow]):
    """The table of layers."""

    HELP = "The layers at this epoch and delta. `e` exports the table as CSV."


class TablePane(RunPane):
    """The layers, a row each."""

    TITLE = "Table"

    @dataclass
    class CursorMoved(Message):
        """The cursor is on another layer."""

        place: int

    def compose(self) -> ComposeResult:
        """Lay the tab out."""
        yield LayersTable(make_columns([]), key=lambda row: row.layer)

    def draw(self, data: RunCurves, view: View) -> None:
        """Draw the curves at an epoch and a delta."""
        table = self.query_one(LayersTable)
        by_block = view.by_block and data.places is not None
        table.set_columns(make_columns(list(data.probes), by_block=by_block))
        table.show(make_layer_rows(data, view), data.layers[view.layers[view.cursor]].layer)

    @on(Table.Moved)
    def _moved(self) -> None:
        table = self.query_one(LayersTable)
        if table.rows:
            self.post_message(self.CursorMoved(table.cursor_row))


class PixelwisePane(RunPane):
    """The probes of every position of the layer under the cursor, as a map."""

    TITLE = "Pixelwise"

    def __init__(self) -> None:
        super().__init__()
        self._shown: tuple[str, object] | None = None

    def compose(self) -> ComposeResult:
        """Lay the tab out."""
        yield Static(id="pixelwise-layer")
        yield HeatMap()

    def draw(self, data: RunCurves, view: View) -> None:
        """Read the layer under the cursor in a thread, then draw it."""
        text = describe_layer(data, view)
        layer = data.layers[view.layers[view.cursor]].layer
        tables = [name for name in data.probes if ProbeKey.parse(name).latents.pooling == "pixelwise"]
        if not tables:
            text.append("\nno pixelwise probes: press n to start probe with the pooling pixelwise", "yellow")
            self.query_one("#pixelwise-layer", Static).update(text)
        elif self._shown != (layer, data):
            self._shown = (layer, data)
            run_in_thread(self.app, lambda: self._read(data, tables[0], layer, text), "map")

    def _read(self, data: RunCurves, table: str, layer: str, text: Text) -> None:
        from satstore.storage.zarr import AnalysisStore

        try:
            values = AnalysisStore(Run(data.path).analysis_path).probe(table, layer)["accuracy"]
            text.append("\naccuracy of a probe at every position, in percent; after the last epoch", "dim")
        except (NotFoundError, KeyError):
            values = np.zeros((0, 0))
            text.append("\nno pixelwise probe of this layer", "yellow")

        def show() -> None:
            if self.is_attached and self._shown == (layer, data):
                self.query_one("#pixelwise-layer", Static).update(text)
                self.query_one(HeatMap).show(np.asarray(values, dtype=float))

        self.app.call_from_thread(show)
