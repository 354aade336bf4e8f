"""Figures of training: accuracy and loss over the epochs, and a quantity of every layer after one epoch."""

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from satstore.errors import NotFoundError
from satstore.reports.colors import TRAIN
from satstore.reports.plots.layer_curves import layers_one_by_one
from satstore.reports.plots.style import (
    MODEL,
    WIDEST,
    break_text,
    finish_axes,
    legend_below,
    name_places,
    tidy_axes,
    with_plain_names,
)
from satstore.runs.run import Run

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
        If there are no spectra of that epoch.
    """
    layers, note = layers_one_by_one(run, all_layers)
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
    title = f"{run.config.title}, epoch {epoch + 1}, delta {shown:g}{note}"
    axes.set_title(break_text(title, width - 1, 10), fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure
