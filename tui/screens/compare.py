"""The screen that overlays the curves of several runs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Footer

from satstore.config.naming import name_experiments
from satstore.reports.run_curves import DELTAS, Float64, RunCurves, read_curves
from satstore.system.text import clean
from tui.colors import CURSOR, MARKERS, RUNS
from tui.layers import percent
from tui.screens.base import AppScreen, AppState
from tui.screens.modals import ExportScreen
from tui.threads import export_plot, run_in_thread
from tui.widgets.curve_plot import Curve, CurvePlot, ReferenceLine
from tui.widgets.plain import Static
from tui.widgets.slider import Slider

N_DEPTHS = 40
"""Steps of the cursor where layers are aligned by depth."""


class ComparePlot(CurvePlot):
    """A plot of several runs."""

    HELP = """\
## Comparison

The marked runs after their last epoch, each with its colour and marker. Probes are those of each run's first
pooling or token mode. Of a network of blocks, the whole blocks are drawn, or else the part that most have.

- `d` aligns the layers by their share of the depth, or by their number.
- `←` `→` move delta, `↑` `↓` the cursor.
- `a` shows all layers, shortcuts and the last Linear too; `e` exports the plot.

""" + (CurvePlot.HELP or "")


class CompareScreen(AppScreen):
    """Several runs on one axis."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "delta(-1)", "Delta −", show=False, tooltip="A smaller delta"),
        Binding("right", "delta(1)", "Delta +", show=False, tooltip="A larger delta"),
        Binding("up,k", "layer(-1)", "Layer −", show=False, tooltip="The layer before"),
        Binding("down,j", "layer(1)", "Layer +", show=False, tooltip="The next layer"),
        Binding("d", "align", "Align", tooltip="Align layers by depth, or by number"),
        Binding("a", "all_layers", "Layers", tooltip="Shortcuts and the last Linear too, or not"),
        Binding("e", "export", "Export", tooltip="Write the plot as PNG or SVG"),
        Binding("escape", "dismiss", "Back", tooltip="Back to the runs"),
    ]

    def __init__(self, app_state: AppState, paths: Sequence[Path]) -> None:
        super().__init__(app_state)
        self._paths = list(paths)
        self._runs: list[RunCurves] = []
        self._by_depth = False
        self._shows_all = False
        self._cursor = 0

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        with Horizontal(id="top"):
            yield Static(f"{len(self._paths)} runs", id="title")
            yield Static("reading …", id="counts")
        yield Static(id="legend-text")
        with Horizontal(id="plots"):
            with Vertical():
                yield Static("saturation", classes="heading")
                yield ComparePlot(id="saturation-plot")
            with Vertical():
                yield Static("probe accuracy", classes="heading")
                yield ComparePlot(id="probe-plot")
        with Vertical(id="sliders"):
            yield Slider("delta", [f"{d:g}" for d in DELTAS], DELTAS.index(0.99), keys="← →", id="delta")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Read the runs."""
        self.query_one("#saturation-plot").focus()
        run_in_thread(self.app, self._read, "compare")

    def _read(self) -> None:
        runs = [read_curves(path) for path in self._paths]
        self.app.call_from_thread(self._take, runs)

    def _take(self, runs: list[RunCurves]) -> None:
        if not self.is_attached:
            return
        self._runs = runs
        deltas = {run.delta for run in runs}
        if len(deltas) == 1 and deltas <= set(DELTAS):
            self.query_one("#delta", Slider).place = DELTAS.index(deltas.pop())
        self._draw()

    # What is shown

    def _layers(self, run: RunCurves) -> tuple[int, ...]:
        return tuple(run.main_layers(range(len(run.layers)) if self._shows_all else run.shown)[1])

    @property
    def _n_places(self) -> int:
        if self._by_depth:
            return N_DEPTHS + 1
        return max((len(self._layers(run)) for run in self._runs), default=1)

    def _curves(self, run: RunCurves) -> tuple[Float64, Float64]:
        """Return saturation and probe accuracy of the layers that are shown."""
        layers, last = list(self._layers(run)), run.n_epochs - 1
        place = run.deltas.index(DELTAS[self.query_one("#delta", Slider).place])
        return run.saturation("train", last, place)[layers], run.accuracy(last)[layers]

    def _draw(self) -> None:
        curves: tuple[list[Curve], list[Curve]] = ([], [])
        legend = Text(no_wrap=True, overflow="ellipsis")
        configs, places = [run.config for run in self._runs], [run.name for run in self._runs]
        names = name_experiments(configs, places, is_brief=True)
        for number, run in enumerate(self._runs):
            color, marker = RUNS[number % len(RUNS)], MARKERS[number % len(MARKERS)]
            n_layers = len(self._layers(run))
            x = [i / max(1, n_layers - 1) if self._by_depth else float(i) for i in range(n_layers)]
            values = self._curves(run)
            for found, y in zip(curves, values, strict=True):
                if np.isfinite(y).any():
                    found.append(Curve(run.name, x, [*y], color, marker))
            legend.append(f"{marker} ", color).append(names[number], "bold")
            legend.append(self._read_out(run, values) + "\n")
        legend.rstrip()
        self.query_one("#legend-text", Static).update(legend)
        self._draw_plots(curves)
        how = "by depth" if self._by_depth else "by number"
        problems = sum(len(run.problems) for run in self._runs)
        text = f"layers aligned {how}" + (f" · {problems} could not be read" if problems else "")
        self.query_one("#counts", Static).update(text)

    def _draw_plots(self, curves: tuple[list[Curve], list[Curve]]) -> None:
        n_places = self._n_places
        at = self._cursor / N_DEPTHS if self._by_depth else self._cursor
        x_limits = (-0.02, 1.02) if self._by_depth else (-0.5, n_places - 0.5)
        names = [] if self._by_depth else [f"{i + 1}" for i in range(n_places)]
        cursor = ReferenceLine("cursor", at, CURSOR, "│")
        for selector, found in zip(("#saturation-plot", "#probe-plot"), curves, strict=True):
            plot = self.query_one(selector, CurvePlot)
            plot.draw(found, [cursor], x_limits=x_limits, y_limits=(0.0, 1.0), names=names)

    def _read_out(self, run: RunCurves, values: tuple[Float64, Float64]) -> str:
        layers = self._layers(run)
        place = self._cursor
        if self._by_depth:
            place = round(self._cursor / N_DEPTHS * (len(layers) - 1))
        if not 0 <= place < len(layers):
            return "  no such layer"
        saturation, accuracy = (float(y[place]) if len(y) else math.nan for y in values)
        model = f", model {percent(run.test_accuracy)}"
        layer = clean(run.layers[layers[place]].layer)
        return f"  {layer}: saturation {percent(saturation)}, probe {percent(accuracy)}{model}"

    # What moves

    @on(Slider.Changed)
    def _slider_moved(self) -> None:
        if self._runs:
            self._draw()

    def action_delta(self, steps: int) -> None:
        """Move delta."""
        self.query_one("#delta", Slider).action_step(steps)

    def action_layer(self, steps: int) -> None:
        """Move the cursor over the layers."""
        self._cursor = max(0, min(self._cursor + steps, self._n_places - 1))
        self._draw()

    def action_align(self) -> None:
        """Align the layers by depth, or by number."""
        before = self._n_places
        self._by_depth = not self._by_depth
        self._cursor = round(self._cursor * (self._n_places - 1) / max(1, before - 1))
        self._draw()

    def action_all_layers(self) -> None:
        """Show all layers, or those of the main path."""
        self._shows_all = not self._shows_all
        self._cursor = min(self._cursor, self._n_places - 1)
        self._draw()

    def action_export(self) -> None:
        """Write the plot."""
        if self._runs:
            self.app.push_screen(ExportScreen(with_table=False), self._export)

    def _export(self, kind: str | None) -> None:
        if kind is None:
            return
        path = Path(f"satstore-comparison.{kind}").absolute()
        delta = DELTAS[self.query_one("#delta", Slider).place]
        arguments = ["plot", *(run.name for run in self._runs), "--out", str(path), "--delta", f"{delta:g}"]
        arguments += ["--by-depth"] if self._by_depth else []
        arguments += ["--all-layers"] if self._shows_all else []
        arguments += ["--logs-dir", str(self.app_state.logs_dir)]
        run_in_thread(self.app, lambda: export_plot(self.app, arguments, path), "export")
