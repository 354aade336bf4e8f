"""Accuracies of the probes at every position of a layer, as a map."""

import math

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

# Eight steps of matplotlib's viridis, which grows lighter throughout: read without colour vision too.
COLORS = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")


class HeatMap(Widget):
    """A map of shares in [0, 1], two characters a position, means of neighbours where there is no room."""

    DEFAULT_CSS = "HeatMap { height: 1fr; width: 1fr; padding: 0 1; }"

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._values: NDArray[np.float64] = np.zeros((0, 0))

    def show(self, values: NDArray[np.float64]) -> None:
        """Show a map (y, x)."""
        self._values = values
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return a row of positions, or the scale below them."""
        width, height = self.content_size
        n_y, n_x = self._values.shape
        step = max(1, math.ceil(n_y / max(1, height - 2)), math.ceil(n_x / max(1, width // 2)))
        n_rows = math.ceil(n_y / step)
        if y < n_rows:
            row = self._values[y * step : (y + 1) * step]
            cells = [self._mean(row[:, x : x + step]) for x in range(0, n_x, step)]
            n_wide = (
                3 if 3 * len(cells) <= width and n_rows * 2 > height else 4 if 4 * len(cells) <= width else 2
            )
            strip = Strip([self._draw(value, n_wide) for value in cells])
        else:
            strip = self._draw_scale(step) if y == n_rows + 1 and n_rows else Strip([])
        return strip.adjust_cell_length(width, self.rich_style)

    @staticmethod
    def _mean(values: NDArray[np.float64]) -> float:
        return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan

    def _draw(self, value: float, width: int) -> Segment:
        if math.isnan(value):
            return Segment("·".center(width), self.rich_style)
        place = max(0, min(7, int(value * 8)))
        style = Style(bgcolor=COLORS[place], color="#ffffff" if place < 5 else "#000000")
        text = f"{min(99, round(100 * value))}" if width > 2 else ""
        return Segment(text.center(width), style)

    def _draw_scale(self, step: int) -> Strip:
        segments = [Segment("0 % ", self.rich_style)]
        segments += [Segment("  ", Style(bgcolor=color)) for color in COLORS]
        text = " 100 %" + (f"   means of {step} × {step} positions" if step > 1 else "")
        return Strip([*segments, Segment(text, self.rich_style)])
