"""The figure of linear CKA between the layers of two runs."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from satstore.reports.plots.style import (
    WIDEST,
    break_text,
    with_plain_names,
)
from satstore.system.text import clean


@with_plain_names
def plot_cka(
    cka: NDArray[np.float64],
    rows: list[str],
    columns: list[str],
    first: str,
    second: str,
) -> Figure:
    """Draw linear CKA as a heat map, the first run's layers from the bottom to the top.

    Parameters
    ----------
    rows, columns
        The labels of the layers; an empty one leaves out the tick, and layers lie closer then.
    first, second
        The names of the runs; the first run's layers are the rows.
    """
    sizes = (min(WIDEST, 3.2 + 0.24 * _count_places(columns)), min(WIDEST, 2.6 + 0.24 * _count_places(rows)))
    figure = Figure(figsize=sizes, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(cka, cmap="cividis", vmin=0, vmax=1, origin="lower", aspect="auto")
    below, beside = ({place: clean(n) for place, n in enumerate(names) if n} for names in (columns, rows))
    axes.set_xticks([*below], [*below.values()], rotation=90, fontsize=7)
    axes.set_yticks([*beside], [*beside.values()], fontsize=7)
    width, height = (size - 1.2 for size in sizes)
    axes.set_xlabel(break_text(second, width, 8), fontsize=8)
    axes.set_ylabel(break_text(first, height, 8), fontsize=8)
    for y, x in zip(*np.nonzero(np.isnan(cka)), strict=True):
        axes.text(x, y, "✗", ha="center", va="center", fontsize=7)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("linear CKA", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _count_places(labels: list[str]) -> float:
    """Return how many labels an axis has to have room for: those it has, and one for three layers."""
    return max(sum(map(bool, labels)), len(labels) / 3)
