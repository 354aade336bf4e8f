"""Pictures of one epoch: a bar per layer, or embedded samples as dots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from satstore.reports.colors import SATURATION
from satstore.reports.plots.style import WIDEST, name_places, save_figure, tidy_axes

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


@dataclass(frozen=True)
class PictureStyle:
    """Sizes and changes that the user asks for of pictures.

    Attributes
    ----------
    fontsize
        Font size of the axes' labels, in points; None for the style's.
    figsize
        Width and height, in inches; None for the size that the layers need.
    change
        Called with the axes to change them; its result is ignored.
    """

    fontsize: float | None = None
    figsize: Sequence[float] | None = None
    change: Callable[[Any], object] | None = None

    def start(self, width: float) -> tuple[Figure, Axes]:
        """Return an empty figure and its axes."""
        from matplotlib.figure import Figure

        wide, high = self.figsize or (min(width, WIDEST), 4.0)
        figure = Figure(figsize=(wide, high), layout="constrained")
        return figure, figure.add_subplot()

    def finish(self, figure: Figure, axes: Axes, title: str, path: Path) -> None:
        """Apply font size, title and changes, then write the file."""
        tidy_axes(axes)
        axes.set_title(title, fontsize=self.fontsize or 10)
        if self.fontsize is not None:
            axes.xaxis.label.set_fontsize(self.fontsize)
            axes.yaxis.label.set_fontsize(self.fontsize)
        if self.change is not None:
            self.change(axes)
        save_figure(figure, path)


def draw_layer_bars(
    values: Mapping[str, float], label: str, title: str, path: Path, style: PictureStyle, *, is_share: bool
) -> None:
    """Draw a bar per layer; with `is_share`, on an axis from 0 to 1."""
    figure, axes = style.start(max(5.0, 1.6 + 0.32 * len(values)))
    axes.bar(range(len(values)), list(values.values()), color=SATURATION)
    name_places(axes, range(len(values)), list(values))
    axes.set_ylabel(label)
    if is_share:
        axes.set_ylim(0, 1)
    style.finish(figure, axes, title, path)


def draw_embedding(points: NDArray[np.float64], title: str, path: Path, style: PictureStyle) -> None:
    """Draw a dot per sample; `points` is (sample, 2)."""
    figure, axes = style.start(5.0)
    axes.scatter(points[:, 0], points[:, 1], s=8, color=SATURATION)
    style.finish(figure, axes, title, path)
