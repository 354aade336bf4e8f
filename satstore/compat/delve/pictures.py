"""Pictures of one epoch, as the tracker's writer draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from satstore.reports.colors import SATURATION
from satstore.reports.plots.style import WIDEST, name_places, save_figure, tidy_axes

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from satstore.compat.delve.statistics import Array


@dataclass(frozen=True)
class Look:
    """How pictures look.

    Attributes
    ----------
    fontsize
        Of the axes' labels, in points; None for the style's.
    figsize
        Width and height, in inches; None for what the layers need.
    change
        Is given the axes, to change them; what it returns is ignored.
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
        """Apply what was asked for, and write the file."""
        tidy_axes(axes)
        axes.set_title(title, fontsize=self.fontsize or 10)
        if self.fontsize is not None:
            axes.xaxis.label.set_fontsize(self.fontsize)
            axes.yaxis.label.set_fontsize(self.fontsize)
        if self.change is not None:
            self.change(axes)
        save_figure(figure, path)


def draw_layers(
    values: Mapping[str, float], label: str, title: str, path: Path, look: Look, *, is_share: bool
) -> None:
    """Draw a bar per layer; `is_share` has the axis go from 0 to 1."""
    figure, axes = look.start(max(5.0, 1.6 + 0.32 * len(values)))
    axes.bar(range(len(values)), list(values.values()), color=SATURATION)
    name_places(axes, range(len(values)), list(values))
    axes.set_ylabel(label)
    if is_share:
        axes.set_ylim(0, 1)
    look.finish(figure, axes, title, path)


def draw_embedding(points: Array, title: str, path: Path, look: Look) -> None:
    """Draw a dot per sample, (sample, 2)."""
    figure, axes = look.start(5.0)
    axes.scatter(points[:, 0], points[:, 1], s=8, color=SATURATION)
    look.finish(figure, axes, title, path)
