"""The figure of the layers' spectra."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from satstore.errors import NotFoundError
from satstore.reports.plots.layer_curves import layers_one_by_one
from satstore.reports.plots.style import (
    MODEL,
    break_text,
    finish_axes,
    legend_beside,
    with_plain_names,
)
from satstore.runs.run import Run


@with_plain_names
def plot_spectrum(run: Run, all_layers: bool = False, epoch: int | None = None) -> Figure:
    """Draw the share of a layer's variance that its first eigendirections explain, a line per layer.

    The horizontal line is the config's delta: a layer's curve crosses it at its saturation.

    Raises
    ------
    NotFoundError
        If there are no spectra at that epoch.
    """
    epoch = run.last_epoch if epoch is None else epoch
    layers, note = layers_one_by_one(run, all_layers)
    spectra = run.spectra("train", layers) if run.last_epoch >= 0 else {}
    if not spectra:
        raise NotFoundError(f"{run.name} has no spectra yet; run: satstore train --run {run.name}")
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    entries: list[tuple[str, Line2D]] = []
    for place, layer in enumerate(layers):
        if layer not in spectra or epoch >= len(spectra[layer]):
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            cumulative = np.cumsum(spectra[layer][epoch])
        if np.isfinite(cumulative[-1]) and cumulative[-1] > 0:
            shares = np.arange(1, len(cumulative) + 1) / len(cumulative)
            color = colormaps["viridis"](0.95 * place / max(1, len(layers) - 1))
            drawn = axes.step(shares, cumulative / cumulative[-1], where="post", color=color, label=layer)
            entries += [(layer, line) for line in drawn]
    delta = run.config.delta
    line = axes.axhline(delta, color=MODEL, linestyle="--", linewidth=1, label=f"delta {delta:g}")
    entries.append((f"delta {delta:g}", line))
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the eigendirections, largest first")
    finish_axes(axes, "share of the variance explained")
    title = f"{run.config.title}, epoch {epoch + 1}, train split{note}"
    axes.set_title(break_text(title, 5.0, 10), fontsize=10)
    legend_beside(figure, entries, -(-len(entries) // 24))
    return figure
