"""A plot of curves that leaves the app's keys alone."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual_hires_canvas import Canvas, TextAlign
from textual_plot import HiResMode, PlotWidget
from textual_plot.axis_formatter import AxisFormatter, NumericAxisFormatter

from satstore.reports.blocks import choose_ticks
from satstore.system.text import clean

Limits = tuple[float, float] | None
"""Where an axis starts and ends; None: at the smallest and the largest value."""


@dataclass(frozen=True)
class Curve:
    """A line with markers; without a marker a plain line."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    marker: str = ""
    is_line: bool = True  # whether its points are joined


@dataclass(frozen=True)
class ReferenceLine:
    """A line across the plot, behind the curves: vertical at a place, or dashed at a height."""

    label: str
    at: float
    color: str
    marker: str = "┊"
    is_vertical: bool = True


class Labels(AxisFormatter):
    """Names at whole numbers, as many as there is room for."""

    def __init__(self, names: Sequence[str], width: int) -> None:
        self.names, self.width = names, width
        self._limits = (-0.5, len(names) - 0.5)

    def get_ticks(self, min_: float, max_: float, max_ticks: int = 8) -> list[float]:
        """Return the places that get a name."""
        self._limits = (min_, max_)
        first, last = max(0, math.ceil(min_)), min(len(self.names) - 1, math.floor(max_))
        longest = max((len(name) for name in self.names[first : last + 1]), default=1)
        n_fit = max(1, self.width // (longest + 2))
        step = max(1, math.ceil((last - first + 1) / n_fit))
        return [float(place) for place in range(first, last + 1, step)]

    def get_labels_for_ticks(self, ticks: Sequence[float]) -> list[str]:
        """Return the names of those places; one that the edge would cut is cut in front."""
        texts = []
        start, end = self._limits
        for tick in ticks:
            name = self.names[round(tick)]
            column = 1 + int((tick - start) / (end - start) * (self.width - 2))  # in the frame
            room = 2 * (self.width - 1 - column) + 1
            texts.append(name if len(name) <= room else f"…{name[len(name) - max(1, room - 1) :]}")
        return texts


class DepthLabels(Labels):
    """Names of depths: those that are no numbers first, and every n-th number that has room."""

    def __init__(self, names: Sequence[str], width: int, numbers: Collection[int]) -> None:
        super().__init__(names, width)
        self.numbers = numbers

    def get_ticks(self, min_: float, max_: float, max_ticks: int = 8) -> list[float]:
        """Return the places that get a name."""
        self._limits = (min_, max_)
        seen = range(max(0, math.ceil(min_)), min(len(self.names) - 1, math.floor(max_)) + 1)
        spacing = self.width / max(1e-9, max_ - min_)
        widths = {place: (len(self.names[place]) + 1) / spacing for place in seen}
        return [float(place) for place in choose_ticks(widths, self.numbers)]


class PlainCanvas(Canvas):
    """A canvas of a plot, whose labels have no markup but the style that the plot puts in front of them."""

    def write_text(self, x: int, y: int, text: str, align: TextAlign = TextAlign.LEFT) -> None:
        """Write ``[style]label`` with its left end, its middle or its right end at a place."""
        style, _, label = text.removeprefix("[").partition("]")
        label = clean(label)
        before = {TextAlign.LEFT: 0, TextAlign.CENTER: (len(label) - 1) // 2, TextAlign.RIGHT: len(label) - 1}
        for place, letter in enumerate(label, x - before[align]):
            self.set_pixel(place, y, letter, style)


def _ignore(*_: object, **__: object) -> None:
    """Do nothing."""


class CurvePlot(PlotWidget, inherit_bindings=False):
    """Curves over layers or epochs; while it has the focus, + and - zoom and shift with the arrows pans."""

    HELP = """\
A plot: `+` and `-` zoom, `shift` with the arrows moves what is seen, `0` shows all again. The mouse wheel
zooms, dragging moves. The screen's own keys go on working.
"""

    DEFAULT_CSS = """
    CurvePlot {
        &> .plot--axis { color: $foreground 30%; }
        &:focus > .plot--axis { color: $primary; }
        &> .plot--tick { color: $foreground 70%; text-style: none; }
        &> .plot--label { color: $foreground 70%; text-style: none; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("plus,equals_sign", "zoom_in", "Zoom in", show=False),
        Binding("minus", "zoom_out", "Zoom out", show=False),
        Binding("shift+left", "pan_left", "Move left", show=False),
        Binding("shift+right", "pan_right", "Move right", show=False),
        Binding("shift+up", "pan_up", "Move up", show=False),
        Binding("shift+down", "pan_down", "Move down", show=False),
        Binding("0", "reset_scales", "Show all", show=False),
    ]

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.set_reactive(CurvePlot.margin_top, 0)
        self.set_reactive(CurvePlot.margin_bottom, 1)
        self.set_reactive(CurvePlot.margin_left, 6)
        self._curves: Sequence[Curve] = ()
        self._reference_lines: Sequence[ReferenceLine] = ()
        self._limits: tuple[Limits, Limits] = (None, None)
        self._names: Sequence[str] = ()
        self._numbers: Collection[int] = ()

    def compose(self) -> ComposeResult:
        """Lay the plot out, on canvases that take no name for markup."""
        for widget in super().compose():
            yield PlainCanvas(1, 1, id=widget.id) if isinstance(widget, Canvas) else widget

    def draw(
        self,
        curves: Sequence[Curve],
        reference_lines: Sequence[ReferenceLine] = (),
        *,
        x_limits: Limits = None,
        y_limits: Limits = None,
        names: Sequence[str] = (),
        numbers: Collection[int] = (),
    ) -> None:
        """Draw curves in place of those before; the zoom stays.

        Parameters
        ----------
        names
            Of places 0, 1, … on the x axis.
        numbers
            The places whose names are numbers, of which every n-th will do; the others come first.
        """
        limits = (x_limits, y_limits)
        if limits != self._limits:
            self._limits = limits
            self.set_xlimits(*(x_limits or (None, None)))
            self.set_ylimits(*(y_limits or (None, None)))
        self._curves, self._reference_lines = curves, reference_lines
        self._names, self._numbers = names, numbers
        self._draw_to_size()

    def on_resize(self) -> None:
        """Draw to the size that it has now; while its tab is hidden, it has none."""
        self._draw_to_size()

    def _draw_to_size(self) -> None:
        if not self.size:
            return
        x_limits, y_limits = self._limits
        width = max(20, self.size.width - self.margin_left)
        room = max(10, self.size.width - self.margin_left)
        labels = DepthLabels(self._names, room, self._numbers) if self._numbers else Labels(self._names, room)
        self.set_x_formatter(labels if self._names else NumericAxisFormatter())
        self.clear()
        for line in self._reference_lines:
            self._draw_reference_line(line, x_limits or (0.0, 1.0), y_limits or (0.0, 1.0), width)
        for curve in (curve for curve in self._curves if curve.is_line):
            x, y = decimate(curve.x, curve.y, 2 * width)
            self.plot(x, y, curve.color, HiResMode.BRAILLE)
        for curve in self._curves:
            if curve.marker:
                self.scatter(*decimate(curve.x, curve.y, 2 * width), curve.marker, curve.color)
        if self._scale_rectangle.width > 0 and not self._needs_canvas_resize:
            self._render_plot()  # now, so that the canvases are in the next frame and not in the one after
            self._needs_rerender = False

    def _render_plot(self) -> None:
        """Draw the canvases, and refresh each once: Textual would at every point, 1,300 times."""
        canvases = list(self.query(Canvas))
        for canvas in canvases:
            canvas.refresh = _ignore  # type: ignore[assignment, method-assign]
        try:
            super()._render_plot()
        finally:
            for canvas in canvases:
                del canvas.refresh
                canvas.refresh()

    def _draw_reference_line(
        self, line: ReferenceLine, x_limits: tuple[float, float], y_limits: tuple[float, float], width: int
    ) -> None:
        """Draw a line of markers: the plot's own lines would hide the curves."""
        n = 2 * self.size.height if line.is_vertical else width * 2 // 3
        start, end = y_limits if line.is_vertical else x_limits
        along = [start + (end - start) * i / max(1, n) for i in range(n + 1)]
        across = [line.at] * (n + 1)
        points = (across, along) if line.is_vertical else (along, across)
        self.scatter(*points, line.marker, line.color)


def decimate(x: Sequence[float], y: Sequence[float], n_most: int) -> tuple[list[float], list[float]]:
    """Return at most so many points of a curve: of each stretch the smallest and the largest."""
    if len(x) <= n_most:
        return list(x), list(y)
    n_stretches = max(1, n_most // 2)
    kept: list[int] = []
    for stretch in np.array_split(np.arange(len(x)), n_stretches):
        values = np.asarray([y[i] for i in stretch], dtype=float)
        if np.isfinite(values).any():
            kept += sorted({int(stretch[np.nanargmin(values)]), int(stretch[np.nanargmax(values)])})
    return [x[i] for i in kept], [y[i] for i in kept]
