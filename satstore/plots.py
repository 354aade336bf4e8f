"""Figures: from a run's tables to matplotlib. Nothing is computed here that a stage computes."""

import math
from typing import TYPE_CHECKING

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from satstore.errors import NotFoundError
from satstore.manifest import drawn_layers, split_probe_key
from satstore.run import Run

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's colours, which people with any colour vision tell apart; markers differ too.
SATURATION = "#0072B2"
PROBES = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("s", "^", "D", "v", "P")
MODEL = "#000000"


def plot_layers(run: Run, all_layers: bool = False) -> Figure:
    """Draw saturation and probe accuracy over the layers, and the model's accuracy as a dashed line.

    Probes that were fitted under a prefix are left out: they vary what the others hold.

    Parameters
    ----------
    all_layers
        Draw shortcut convolutions and the last Linear too.

    Raises
    ------
    NotFoundError
        If the run has neither saturation nor probes yet.
    """
    layers = run.layers if all_layers else drawn_layers(run.manifest.layers)
    probes = {
        key: run.table(f"probe-{key}")
        for key in run.probe_tables()
        if run.has_file(f"probe-{key}.csv") and not split_probe_key(key).prefix
    }
    saturation = run.manifest.summary.saturation
    if not saturation and not probes:
        raise NotFoundError(f"{run.name} has nothing to draw yet; run: satstore saturation --run {run.name}")
    figure = Figure(figsize=(max(5.0, 1.6 + 0.32 * len(layers)), 4.2), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(layers))
    if saturation:
        found = [saturation.get(layer) for layer in layers]
        values = [math.nan if value is None else value for value in found]
        axes.plot(places, values, color=SATURATION, marker="o", markersize=5, label="saturation")
    for (key, table), color, marker in zip(probes.items(), PROBES, MARKERS, strict=False):
        label = f"probe accuracy ({key})"
        accuracy = table.groupby("layer")["eval_accuracy"].mean().reindex(layers)  # over its positions
        axes.plot(places, accuracy, color=color, marker=marker, markersize=5, label=label)
    reached = run.manifest.summary.test_accuracy
    if reached is not None:
        axes.axhline(reached, color=MODEL, linestyle="--", linewidth=1, label=f"model accuracy {reached:.1%}")
    border = run.manifest.summary.border_layer
    if border in layers:
        axes.axvline(layers.index(border), color=MODEL, linestyle=":", linewidth=1.2, label="border layer")
    axes.set_xticks(places, layers, rotation=90, fontsize=8)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("saturation, accuracy")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    config = run.config
    axes.set_title(f"{config.model} on {config.dataset} at {config.resolution} px", fontsize=11)
    # Below the axes: inside, it would cover one curve or the other.
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def plot_evolution(run: Run, all_layers: bool = False) -> Figure:
    """Draw probe accuracy and saturation over the epochs, a line per layer, from dark (the first) to light.

    Probes are those of the first pooling that was fitted without a prefix; saturation is that of the train
    split; the dashed line is the model's accuracy.

    Parameters
    ----------
    all_layers
        Draw shortcut convolutions and the last Linear too.

    Raises
    ------
    NotFoundError
        If the run has neither probes nor saturation yet.
    """
    layers = run.layers if all_layers else drawn_layers(run.manifest.layers)
    panels = evolution_tables(run)
    if not panels:
        raise NotFoundError(f"{run.name} has nothing to draw yet; run: satstore saturation --run {run.name}")
    figure = Figure(figsize=(2.2 + 4 * len(panels), 4.2), layout="constrained")
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, table) in zip(every, panels.items(), strict=True):
        for place, layer in enumerate(layers):
            if layer in table:
                color = colormaps["viridis"](0.95 * place / max(1, len(layers) - 1))
                axes.plot(table.index, table[layer], color=color, marker="o", markersize=3, label=layer)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.set_xlim(-0.5, run.last_epoch + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(0, 1.02)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    lines, names = every[-1].get_legend_handles_labels()
    if run.has_file("metrics.csv"):
        reached = run.table("metrics")
        lines += every[0].plot(
            reached["epoch"], reached["eval_accuracy"], color=MODEL, linestyle="--", linewidth=1
        )
        names.append("model accuracy")
    config = run.config
    figure.suptitle(f"{config.model} on {config.dataset} at {config.resolution} px", fontsize=11)
    figure.legend(
        lines, names, loc="outside right center", ncols=-(-len(names) // 20), frameon=False, fontsize=7
    )
    return figure


def evolution_tables(run: Run) -> dict[str, "pd.DataFrame"]:
    """Return what there is of probe accuracy and saturation, by title: epochs (rows) by layers (columns)."""
    tables: dict[str, pd.DataFrame] = {}
    keys = [*run.probe_tables(), *run.manifest.probes]
    fitted = [split_probe_key(key) for key in keys if run.has_file(f"probe-{key}.csv")]
    pooling = next((table.pooling for table in fitted if not table.prefix), None)
    if pooling is not None:
        found = run.probe_evolution(pooling)  # of pixelwise, the mean over the positions
        tables[f"probe accuracy ({pooling})"] = found.pivot_table("eval_accuracy", "epoch", "layer")
    if run.has_file("saturation.csv"):
        delta = run.manifest.config["delta"]
        found = run.table("saturation").query(
            "split == 'train' and definition == 'exact' and delta == @delta"
        )
        if len(found):
            tables[f"saturation (delta {delta})"] = found.pivot_table("saturation", "epoch", "layer")
    return tables
