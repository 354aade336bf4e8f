"""The figure of probe accuracy and saturation over the epochs."""

from statistics import mode
from typing import TYPE_CHECKING

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from satstore.errors import NotFoundError
from satstore.reports.blocks import choose_table, main_layers, place_layers
from satstore.reports.plots.layer_curves import (
    choose_shown,
    label_probes,
    layers_one_by_one,
    shown_layers,
)
from satstore.reports.plots.style import MODEL, break_text, finish_axes, legend_beside, with_plain_names
from satstore.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.lines import Line2D


@with_plain_names
def plot_evolution(run: Run, all_layers: bool = False, target: str | None = None) -> Figure:
    """Draw probe accuracy and saturation over the epochs, a line per layer, from dark (the first) to light.

    Probes are of the first pooling that was fitted without a prefix, saturation is of the train split; the
    dashed line is the model's accuracy. The target is as :func:`.plot_layers` has it.

    Raises
    ------
    NotFoundError
        If the run has neither probes nor saturation yet.
    UnknownNameError
        If the run has no such target.
    """
    layers, note = layers_one_by_one(run, all_layers)
    target = choose_shown(run, target)
    panels = evolution_tables(run, target)
    if not panels:
        raise NotFoundError(f"{run.name} has nothing to draw yet; run: satstore saturation --run {run.name}")
    figure = Figure(figsize=(2.2 + 4 * len(panels), 4.2), layout="constrained")
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    lines: dict[str, Line2D] = {}
    for axes, (title, table) in zip(every, panels.items(), strict=True):
        for place, layer in enumerate(layers):
            if layer in table:
                color = colormaps["viridis"](0.95 * place / max(1, len(layers) - 1))
                look = {"color": color, "marker": "o", "markersize": 3, "label": layer}
                [lines[layer]] = axes.plot(table.index + 1, table[layer], **look)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, max(0, run.last_epoch) + 1.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        finish_axes(axes, "")
    entries = list(lines.items())
    reached = run.table("metrics") if run.has_file("metrics.csv") else None
    if reached is not None and not target and "eval_accuracy" in reached:  # imported ones may have none
        look = {"color": MODEL, "linestyle": "--", "linewidth": 1}
        [line] = every[0].plot(reached["epoch"] + 1, reached["eval_accuracy"], **look)
        entries.append(("model accuracy", line))
    figure.suptitle(break_text(f"{run.config.title}{note}", figure.get_figwidth() - 1, 11), fontsize=11)
    legend_beside(figure, entries, 1 + (len(entries) - 1) // 20)
    return figure


def evolution_tables(run: Run, target: str) -> dict[str, "pd.DataFrame"]:
    """Return tables of probe accuracy and saturation, if any, by title: epochs (rows) by layers (columns)."""
    tables: dict[str, pd.DataFrame] = {}
    fitted = [key for key in run.manifest.shown_probes(target) if run.has_file(key.file)]
    fitted.sort(key=lambda key: key.latents.epoch is not None)  # those of the last epoch first
    _, layers = main_layers(place_layers(run.manifest), shown_layers(run))
    forms = [record.form for record in run.manifest.layers if record.layer in layers]
    key = choose_table(mode(forms), fitted) if forms else None
    if key is not None:
        pooling = key.latents.group
        found = run.probe_evolution(pooling, target)  # of pixelwise, the mean over the positions
        tables[label_probes(target, pooling)] = found.pivot_table("eval_accuracy", "epoch", "layer")
    if run.has_file("saturation.csv"):
        delta, table = run.made_with.delta, run.table("saturation")
        table = table[(table["split"] == "train") & (table["delta"] == delta)]
        # Imported runs have delve's only.
        definition = "exact" if "exact" in set(table["definition"]) else "delve"
        found = table[table["definition"] == definition]
        if len(found):
            tables[f"saturation (delta {delta})"] = found.pivot_table("saturation", "epoch", "layer")
    return tables
