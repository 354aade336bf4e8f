"""Figures: from a run's tables to matplotlib. Nothing is computed here that a stage computes."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from satstore.errors import NotFoundError
from satstore.manifest import drawn_layers, split_probe_key
from satstore.run import Run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which people with any colour vision tell apart; markers differ too.
SATURATION = "#0072B2"
PROBES = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("s", "^", "D", "v", "P")
MODEL = "#000000"
RUNS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#999999")
RUN_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def plot_layers(
    run: Run, all_layers: bool = False, delta: float | None = None, epoch: int | None = None
) -> Figure:
    """Draw saturation and probe accuracy over the layers, and the model's accuracy as a dashed line.

    Probes that were fitted under a prefix are left out: they vary what the others hold.

    Parameters
    ----------
    all_layers
        Draw shortcut convolutions and the last Linear too.
    delta
        Of the saturation, from the stored spectra; by default the config's.
    epoch
        Counted from 0; by default the last.

    Raises
    ------
    NotFoundError
        If the run has neither saturation nor probes, then.
    """
    layers = run.layers if all_layers else drawn_layers(run.manifest.layers)
    probes = probe_curves(run, layers, epoch)
    saturation = saturation_curve(run, layers, delta, epoch)
    if saturation is None and not probes:
        raise NotFoundError(f"{run.name} has nothing to draw yet; run: satstore saturation --run {run.name}")
    figure = Figure(figsize=(max(5.0, 1.6 + 0.32 * len(layers)), 4.2), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(layers))
    if saturation is not None:
        label = "saturation" if delta is None else f"saturation (delta {delta:g})"
        draw_curve(axes, places, layers, saturation, color=SATURATION, marker="o", label=label)
    for (key, accuracy), color, marker in zip(probes.items(), PROBES, MARKERS, strict=False):
        draw_curve(
            axes, places, layers, accuracy, color=color, marker=marker, label=f"probe accuracy ({key})"
        )
    reached = model_accuracy(run, epoch)
    if reached is not None:
        axes.axhline(reached, color=MODEL, linestyle="--", linewidth=1, label=f"model accuracy {reached:.1%}")
    border = run.manifest.summary.border_layer
    if border in layers:
        axes.axvline(layers.index(border), color=MODEL, linestyle=":", linewidth=1.2, label="border layer")
    axes.set_xticks(places, layers, rotation=90, fontsize=8)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    finish_axes(axes, "saturation, accuracy")
    at = "" if epoch is None or epoch == run.last_epoch else f", epoch {epoch}"
    axes.set_title(f"{describe_experiment(run)}{at}", fontsize=11)
    # Below the axes: inside, it would cover one curve or the other.
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def plot_comparison(
    runs: Sequence[Run], by_depth: bool = False, all_layers: bool = False, delta: float | None = None
) -> Figure:
    """Draw saturation and probe accuracy of several runs over their layers, a colour and a marker each.

    Parameters
    ----------
    by_depth
        Align the layers by their share of the depth, rather than by their number.
    all_layers, delta
        Those of :func:`plot_layers`; by default delta is each config's.

    Raises
    ------
    NotFoundError
        If no run has saturation or probes yet.
    """
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    n_drawn = 0
    for number, run in enumerate(runs):
        layers = run.layers if all_layers else drawn_layers(run.manifest.layers)
        places = [place / max(1, len(layers) - 1) if by_depth else place + 1 for place in range(len(layers))]
        probes = probe_curves(run, layers, None)
        curves = (saturation_curve(run, layers, delta, None), next(iter(probes.values()), None))
        look = {"color": RUNS[number % len(RUNS)], "marker": RUN_MARKERS[number % len(RUN_MARKERS)]}
        for axes, curve in zip(panels, curves, strict=True):
            if curve is not None:
                n_drawn += 1
                draw_curve(axes, places, layers, curve, label=describe_experiment(run), **look)
    if not n_drawn:
        raise NotFoundError("none of these runs has anything to draw yet; run: satstore saturation --run RES")
    for axes, title in zip(panels, ("saturation", "probe accuracy"), strict=True):
        axes.set_xlabel("depth" if by_depth else "layer")
        finish_axes(axes, title)
    lines = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    return figure


def describe_experiment(run: Run) -> str:
    """Return what an experiment is, for titles and legends."""
    config = run.config
    return f"{config.model} on {config.dataset} at {config.resolution} px"


def finish_axes(axes: "Axes", label: str) -> None:
    """Give the axes of shares their look."""
    axes.set_ylim(0, 1.02)
    axes.set_ylabel(label)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_curve(
    axes: "Axes", places: Sequence[float], layers: Sequence[str], found: Mapping[str, float], **look: Any
) -> None:
    """Draw what was found of layers, with a gap where nothing was, and a cross at 0 where it is no number."""
    axes.plot(places, [found.get(layer, math.nan) for layer in layers], markersize=5, **look)
    bad = [place for place, layer in zip(places, layers, strict=True) if math.isnan(found.get(layer, 0.0))]
    if bad:
        label = f"{look['label']}: no number"
        axes.plot(bad, [0.0] * len(bad), "x", color=look["color"], markersize=8, clip_on=False, label=label)


def saturation_curve(
    run: Run, layers: Sequence[str], delta: float | None, epoch: int | None
) -> dict[str, float] | None:
    """Return the train split's saturation of some layers; None if the run has none, then.

    A layer whose activations weren't finite has NaN, one that wasn't recorded is left out.
    """
    if delta is None and epoch in (None, run.last_epoch):
        found: Mapping[str, float | None] = run.manifest.summary.saturation
    elif run.last_epoch < 0:
        return None
    else:
        table = run.saturation(delta, split="train")
        rows = table[table["epoch"] == (run.last_epoch if epoch is None else epoch)]
        found = dict(zip(rows["layer"], rows["saturation"], strict=True))
    numbers = {layer: math.nan if value is None else value for layer, value in found.items()}
    return {layer: numbers[layer] for layer in layers if layer in numbers} if found else None


def probe_curves(run: Run, layers: Sequence[str], epoch: int | None) -> dict[str, dict[str, float]]:
    """Return the accuracy of some layers' probes after an epoch, by pooling; the mean over positions.

    A layer that allows no probe has NaN, one that wasn't fitted is left out.
    """
    wanted = None if epoch in (None, run.last_epoch) else epoch
    found: dict[str, dict[str, float]] = {}
    for key in run.manifest.probes:
        table = split_probe_key(key)
        if not table.prefix and table.epoch == wanted and run.has_file(f"probe-{key}.csv"):
            accuracy = run.table(f"probe-{key}").groupby("layer")["eval_accuracy"].mean().to_dict()
            found[table.pooling] = {layer: accuracy[layer] for layer in layers if layer in accuracy}
    return found


def model_accuracy(run: Run, epoch: int | None) -> float | None:
    """Return the model's test accuracy after an epoch."""
    if epoch in (None, run.last_epoch) or not run.has_file("metrics.csv"):
        return run.manifest.summary.test_accuracy
    metrics = run.table("metrics")
    return float(metrics.loc[metrics["epoch"] == epoch, "eval_accuracy"].iloc[0])


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
        finish_axes(axes, "")
    lines, names = every[-1].get_legend_handles_labels()
    if run.has_file("metrics.csv"):
        reached = run.table("metrics")
        lines += every[0].plot(
            reached["epoch"], reached["eval_accuracy"], color=MODEL, linestyle="--", linewidth=1
        )
        names.append("model accuracy")
    figure.suptitle(describe_experiment(run), fontsize=11)
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
