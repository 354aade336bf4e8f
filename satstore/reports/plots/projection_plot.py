"""The figure of test accuracy with layers projected onto subspaces."""

from itertools import cycle

from matplotlib.figure import Figure

from satstore.errors import NotFoundError
from satstore.reports.colors import RUNS, TRAIN
from satstore.reports.plots.style import (
    MARKERS,
    MODEL,
    break_text,
    finish_axes,
    legend_below,
    name_places,
    with_plain_names,
)
from satstore.runs.run import Run


@with_plain_names
def plot_projection(run: Run) -> Figure:
    """Draw the model's test accuracy with projected layers, over delta.

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
