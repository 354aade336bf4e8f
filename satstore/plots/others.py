"""Figures of one run besides its layers: training, spectra, projections, and each epoch's bars."""

from itertools import cycle
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from satstore.colors import RUNS, TRAIN
from satstore.errors import NotFoundError
from satstore.plots.layers import shown_layers
from satstore.plots.style import (
    MARKERS,
    MODEL,
    WIDEST,
    break_text,
    finish_axes,
    legend_below,
    legend_beside,
    name_places,
    tidy_axes,
    with_plain_names,
)
from satstore.runs.run import Run
from satstore.system.text import clean

Quantity = Literal["saturation", "intrinsic_dimension"]

SPLITS = (("train", TRAIN, "o"), ("eval", MODEL, "s"))


@with_plain_names
def plot_training(run: Run) -> Figure:
    """Draw accuracy and loss over the epochs, of both splits.

    Raises
    ------
    NotFoundError
        If no epoch is done.
    """
    if not run.has_file("metrics.csv"):
        raise NotFoundError(f"{run.name} is not trained yet; run: satstore train --run {run.name}")
    metrics = run.table("metrics")
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, measure in zip(panels, ("accuracy", "loss"), strict=True):
        for split, color, marker in SPLITS:
            column = f"{split}_{measure}"
            if column in metrics:
                look = {"color": color, "marker": marker, "markersize": 4, "label": split}
                axes.plot(metrics["epoch"] + 1, metrics[column], **look)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if measure == "accuracy":
            finish_axes(axes, measure)
        else:
            axes.set_ylabel(measure)
            axes.set_ylim(bottom=0)
            tidy_axes(axes)
    figure.suptitle(break_text(run.config.title, 8.4, 11), fontsize=11)
    legend_below(figure, list(panels))
    return figure


@with_plain_names
def plot_spectrum(run: Run, all_layers: bool = False, epoch: int | None = None) -> Figure:
    """Draw the share of a layer's variance that its first eigendirections explain, a line per layer.

    The horizontal line is the config's delta: a layer's saturation is where its line crosses it.

    Raises
    ------
    NotFoundError
        If there are no spectra then.
    """
    epoch = run.last_epoch if epoch is None else epoch
    layers = shown_layers(run, all_layers)
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
    title = f"{run.config.title}, epoch {epoch + 1}, train split"
    axes.set_title(break_text(title, 5.0, 10), fontsize=10)
    legend_beside(figure, entries, -(-len(entries) // 24))
    return figure


@with_plain_names
def plot_projection(run: Run) -> Figure:
    """Draw the test accuracy of the model whose layers' outputs are projected, over delta.

    Raises
    ------
    NotFoundError
        If nothing was projected yet.
    """
    if not run.has_file("projection.csv"):
        raise NotFoundError(f"{run.name} was not projected yet; run: satstore project --run {run.name}")
    table = run.table("projection")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    deltas = sorted(table.loc[table["mode"] != "none", "delta"].dropna().unique())
    projected = table[table["mode"] != "none"]
    keys = ["mode", "layers", "exclude"]
    looks = zip(cycle((MODEL, TRAIN, *RUNS[1:])), cycle(MARKERS), strict=False)
    for (group, rows), (color, marker) in zip(projected.groupby(keys, dropna=False), looks, strict=False):
        mode, layers, exclude = (
            "" if part != part else f"{part}" for part in group
        )  # NaN differs from itself
        label = mode + (f", layers {layers}" if layers else "") + (f", without {exclude}" if exclude else "")
        of_delta = rows.groupby("delta")["eval_accuracy"]
        places = [deltas.index(delta) for delta in of_delta.mean().index]
        axes.plot(places, of_delta.mean(), color=color, marker=marker, markersize=4, label=label)
        if (of_delta.count() > 1).any():  # several seeds
            axes.fill_between(places, of_delta.min(), of_delta.max(), color=color, alpha=0.2, linewidth=0)
    whole = table.loc[table["mode"] == "none", "eval_accuracy"]
    if len(whole):
        reached = float(whole.iloc[0])
        axes.axhline(reached, color=MODEL, linestyle="--", linewidth=1, label=f"no projection {reached:.1%}")
    name_places(axes, range(len(deltas)), [f"{delta:g}" for delta in deltas])
    axes.set_xlabel("delta")
    finish_axes(axes, "test accuracy")
    axes.set_title(break_text(f"{run.config.title}: projected", 5.4, 10), fontsize=10)
    legend_below(figure, [axes])
    return figure


@with_plain_names
def plot_epoch(
    run: Run,
    epoch: int,
    quantity: Quantity = "saturation",
    all_layers: bool = False,
    delta: float | None = None,
) -> Figure:
    """Draw a quantity of every layer after an epoch, as bars; both splits side by side.

    Raises
    ------
    NotFoundError
        If there are no spectra then.
    """
    layers = shown_layers(run, all_layers)
    if run.last_epoch < 0:
        raise NotFoundError(f"{run.name} has no spectra yet; run: satstore train --run {run.name}")
    width = min(WIDEST, max(5.0, 1.6 + 0.36 * len(layers)))
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    axes = figure.add_subplot()
    highest, n_found = 0.0, 0
    for number, (split, color, _) in enumerate(SPLITS):
        table = run.saturation(delta, split=split)
        table = table[table["epoch"] == epoch]
        n_found += len(table)
        rows: pd.Series[float] = table.set_index("layer")[quantity].reindex(layers)
        highest = max(highest, float(rows.max()) if rows.notna().any() else 0.0)
        places = np.arange(len(layers)) + (number - 0.5) * 0.4
        axes.bar(places, rows.to_numpy(dtype=float), 0.4, color=color, label=split)
    if not n_found:
        raise NotFoundError(f"{run.name} has no spectra of epoch {epoch + 1}")
    name_places(axes, range(len(layers)), layers)
    if quantity == "saturation":
        finish_axes(axes, quantity)
    else:
        axes.set_ylim(0, 1.05 * highest or 1)
        axes.set_ylabel("intrinsic dimension")
        tidy_axes(axes)
    shown = run.config.delta if delta is None else delta
    title = f"{run.config.title}, epoch {epoch + 1}, delta {shown:g}"
    axes.set_title(break_text(title, width - 1, 10), fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


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
    first, second
        The runs' names; the first has the rows.
    """
    sizes = (min(WIDEST, 3.2 + 0.24 * len(columns)), min(WIDEST, 2.6 + 0.24 * len(rows)))
    figure = Figure(figsize=sizes, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(cka, cmap="cividis", vmin=0, vmax=1, origin="lower", aspect="auto")
    axes.set_xticks(range(len(columns)), [clean(name) for name in columns], rotation=90, fontsize=7)
    axes.set_yticks(range(len(rows)), [clean(name) for name in rows], fontsize=7)
    width, height = (size - 1.2 for size in sizes)
    axes.set_xlabel(break_text(second, width, 8), fontsize=8)
    axes.set_ylabel(break_text(first, height, 8), fontsize=8)
    for y, x in zip(*np.nonzero(np.isnan(cka)), strict=True):
        axes.text(x, y, "✗", ha="center", va="center", fontsize=7)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("linear CKA", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure
