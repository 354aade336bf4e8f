"""Figures of saturation and probe accuracy over the layers, of one run or several."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from satstore.config.latent_keys import ProbeKey
from satstore.config.naming import name_experiments
from satstore.errors import NotFoundError
from satstore.reports.blocks import (
    Places,
    choose_table,
    main_layers,
    number_depths,
    place_layers,
    sort_tables,
)
from satstore.reports.colors import PROBES, RUNS, SATURATION
from satstore.reports.plots.block_curves import BlockCurves, plot_blocks
from satstore.reports.plots.style import (
    MARKERS,
    MODEL,
    RUN_MARKERS,
    WIDEST,
    break_text,
    draw_curve,
    finish_axes,
    legend_below,
    name_places,
    with_plain_names,
)
from satstore.runs.manifest import drawn_layers
from satstore.runs.run import Run
from satstore.runs.targets import find_target

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@with_plain_names
def plot_layers(
    run: Run,
    all_layers: bool = False,
    delta: float | None = None,
    epoch: int | None = None,
    target: str | None = None,
) -> Figure:
    """Draw saturation and probe accuracy over the layers, and the model's accuracy as a dashed line.

    Probes with a prefix are left out: they were fitted under other conditions.

    Parameters
    ----------
    all_layers
        Whether to draw shortcut convolutions and the last Linear too.
    delta
        The delta of the saturation, from the stored spectra; by default the config's.
    epoch
        Counted from 0; by default the last.
    target
        The labels that the probes were fitted to; by default the data's own, if there are such probes, else
        the first target.

    Raises
    ------
    NotFoundError
        If the run has neither saturation nor probes at that epoch, or none of the target that is named.
    UnknownNameError
        If the run has no such target.
    """
    layers = shown_layers(run, all_layers)
    at = "" if epoch is None or epoch == run.last_epoch else f", epoch {epoch + 1}"
    places = place_layers(run.manifest)
    if places is not None:
        curves = read_block_curves(run, places, layers, delta=delta, epoch=epoch, target=target)
        return plot_blocks(f"{run.config.title}{at}", curves)
    width = min(WIDEST, max(5.0, 1.6 + 0.32 * len(layers)))
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    axes = figure.add_subplot()
    if not draw_layer_curves(axes, run, layers, delta=delta, epoch=epoch, target=target):
        raise NotFoundError(_lacks_all(run))
    axes.set_title(break_text(f"{run.config.title}{at}", width - 1, 11), fontsize=11)
    legend_below(figure, [axes])
    return figure


def _lacks_all(run: Run) -> str:
    return f"{run.name} has nothing to draw yet; run: satstore saturation --run {run.name}"


def read_block_curves(
    run: Run,
    places: Places,
    layers: Sequence[str],
    *,
    delta: float | None,
    epoch: int | None,
    target: str | None,
) -> BlockCurves:
    """Read what a figure over the depth shows; NotFoundError if there is neither saturation nor a probe."""
    target = choose_shown(run, target)
    saturation = saturation_curve(run, layers, delta, epoch)
    found = probe_curves(run, layers, epoch, target)
    tables = sort_tables({key: values.values() for key, values in found.items()})
    probes = {key: found[key] for key in tables if found[key]}
    if saturation is None and not probes:
        raise NotFoundError(_lacks_all(run))
    return BlockCurves(
        places=places,
        layers=layers,
        saturation=saturation,
        saturation_label=label_saturation(delta),
        probes=probes,
        target=target,
        model_accuracy=None if target else model_accuracy(run, epoch),
        border=run.manifest.summary.border_layer,
    )


def label_saturation(delta: float | None) -> str:
    """Return the label of saturation, with its delta if that is not the config's."""
    return "saturation" if delta is None else f"saturation (delta {delta:g})"


def shown_layers(run: Run, all_layers: bool = False) -> list[str]:
    """Return the layers that figures show: the main path without the last Linear, or all."""
    return run.layers if all_layers else drawn_layers(run.manifest)


def layers_one_by_one(run: Run, all_layers: bool = False) -> tuple[list[str], str]:
    """Return the layers of figures that draw each by itself, and a note for their titles on which these are.

    Of a network of blocks, which has too many, these are the whole blocks, or the part that most blocks have.
    """
    if all_layers:
        return run.layers, ""
    part, layers = main_layers(place_layers(run.manifest), shown_layers(run))
    return layers, f", {part}" if part else ""


def draw_layer_curves(
    axes: "Axes",
    run: Run,
    layers: list[str],
    *,
    delta: float | None = None,
    epoch: int | None = None,
    target: str | None = None,
    tables: Sequence[ProbeKey] | None = None,
    size: float = 8,
    width: float | None = None,
) -> bool:
    """Draw saturation and probe accuracy, the model's accuracy and the border layer; tell if any was drawn.

    Parameters
    ----------
    target, tables
        The target, and the tables of probes to draw; by default all that were fitted without a prefix.
    size, width
        Size of the layers' names in points, and width of the axes in inches; see :func:`.style.name_places`.
    """
    target = choose_shown(run, target)
    probes = probe_curves(run, layers, epoch, target)
    if tables is not None:
        probes = {key: probes[key] for key in tables if key in probes}
    saturation = saturation_curve(run, layers, delta, epoch)
    places = range(len(layers))
    if saturation is not None:
        label = label_saturation(delta)
        draw_curve(axes, places, layers, saturation, color=SATURATION, marker="o", label=label)
    for (key, accuracy), color, marker in zip(probes.items(), cycle(PROBES), cycle(MARKERS), strict=False):
        label = label_probes(target, key.latents.group)
        draw_curve(axes, places, layers, accuracy, color=color, marker=marker, label=label)
    reached = None if target else model_accuracy(run, epoch)
    if reached is not None:
        axes.axhline(reached, color=MODEL, linestyle="--", linewidth=1, label=f"model accuracy {reached:.1%}")
    border = run.manifest.summary.border_layer
    if border in layers:
        axes.axvline(layers.index(border), color=MODEL, linestyle=":", linewidth=1.2, label="border layer")
    name_places(axes, places, layers, size, width)
    finish_axes(axes, "saturation, accuracy")
    return saturation is not None or bool(probes)


@with_plain_names
def plot_comparison(
    runs: Sequence[Run],
    by_depth: bool = False,
    all_layers: bool = False,
    delta: float | None = None,
    target: str | None = None,
) -> Figure:
    """Draw saturation and probe accuracy of several runs over their layers, a colour and a marker each.

    Of a network of blocks, the whole blocks are drawn over their depth, or the part that most blocks have.

    Parameters
    ----------
    by_depth
        Whether to align layers by their share of the depth, rather than by their number.
    target
        As :func:`plot_layers` has it.

    Raises
    ------
    NotFoundError
        If no run has saturation or probes yet.
    UnknownNameError
        If a run has no such target.
    """
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    n_drawn = 0
    also = ["delta"] if delta is None else []
    names = name_experiments([run.config for run in runs], [run.name for run in runs], also=also)
    for number, run in enumerate(runs):
        blocks = place_layers(run.manifest)
        part, layers = main_layers(blocks, shown_layers(run, all_layers))
        depths = number_depths(blocks, layers)
        places = [depth / max(1, *depths) if by_depth else depth + 1 for depth in depths]
        accuracy = main_accuracy(run, layers, choose_shown(run, target))
        curves = (saturation_curve(run, layers, delta, None), accuracy)
        name = f"{names[number]}, {part}" if part else names[number]
        look = {"color": RUNS[number % len(RUNS)], "marker": RUN_MARKERS[number % len(RUN_MARKERS)]}
        for axes, curve in zip(panels, curves, strict=True):
            if curve is not None:
                n_drawn += 1
                draw_curve(axes, places, layers, curve, label=name, **look)
    if not n_drawn:
        raise NotFoundError("none of these runs has anything to draw yet; run: satstore saturation --run RES")
    for axes, title in zip(panels, ("saturation", "probe accuracy"), strict=True):
        axes.set_xlabel("depth" if by_depth else "layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=not by_depth))
        finish_axes(axes, title)
    legend_below(figure, list(panels))
    return figure


def saturation_curve(
    run: Run, layers: Sequence[str], delta: float | None, epoch: int | None
) -> dict[str, float] | None:
    """Return the train split's saturation of some layers; None if the run has none at that epoch.

    A layer with non-finite activations has NaN; one that wasn't recorded is left out.
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


def choose_shown(run: Run, target: str | None) -> str:
    """Return the target whose probes are to be drawn, by default that of :attr:`.Manifest.shown_target`.

    UnknownNameError if there is no such target, NotFoundError if it has no probes yet.
    """
    if target is None:
        return run.manifest.shown_target
    find_target(run.manifest, target, run.name)
    if target not in run.manifest.fitted_targets:
        raise NotFoundError(
            f"{run.name} has no probes of target {target} yet; run: satstore probe --run {run.name} "
            f"--target {target}"
        )
    return target


def label_probes(target: str, pooling: str) -> str:
    """Return the label of a target's probes at a pooling."""
    return f"probe accuracy ({', '.join(filter(None, (target, pooling)))})"


def probe_curves(
    run: Run, layers: Sequence[str], epoch: int | None, target: str
) -> dict[ProbeKey, dict[str, float]]:
    """Return the accuracy of a target's probes after an epoch, by table and layer; the mean over positions.

    A layer that can't be probed has NaN; one without a probe is left out.
    """
    wanted = None if epoch in (None, run.last_epoch) else epoch
    found: dict[ProbeKey, dict[str, float]] = {}
    for key in run.manifest.shown_probes(target):
        if key.latents.epoch == wanted and run.has_file(key.file):
            accuracy = run.table(key.table).groupby("layer")["eval_accuracy"].mean().to_dict()
            found[key] = {layer: accuracy[layer] for layer in layers if layer in accuracy}
    return found


def main_accuracy(run: Run, layers: Sequence[str], target: str) -> dict[str, float] | None:
    """Return the accuracy of a target's probes after the last epoch, each of the first table that fits it.

    None if there are no probes.
    """
    curves = probe_curves(run, layers, None, target)
    forms = {record.layer: record.form for record in run.manifest.layers}
    chosen = {layer: choose_table(forms[layer], [*curves]) for layer in layers} if curves else {}
    found = {layer: curves[key] for layer, key in chosen.items() if key is not None}
    return {layer: found[layer][layer] for layer in layers if layer in found[layer]} if curves else None


def model_accuracy(run: Run, epoch: int | None) -> float | None:
    """Return the model's test accuracy after an epoch; None if it was not measured."""
    if epoch in (None, run.last_epoch) or not run.has_file("metrics.csv"):
        return run.manifest.summary.test_accuracy
    metrics = run.table("metrics").reindex(columns=["epoch", "eval_accuracy"])  # imported ones may have none
    reached = metrics.loc[metrics["epoch"] == epoch, "eval_accuracy"].dropna()
    return float(reached.iloc[0]) if len(reached) else None
