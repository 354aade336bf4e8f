"""The paper's figures and Table 1, drawn from the runs that a config describes."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from satstore.config.experiment import ExperimentConfig
from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.config.naming import KEYS, describe_value, name_experiments, varied_keys
from satstore.reports.colors import PROBES, SATURATION
from satstore.reports.plots.layer_curves import draw_layer_curves, model_accuracy, shown_layers
from satstore.reports.plots.pixelwise_plot import N_COLUMNS, PIXELWISE, draw_maps, pixelwise_maps
from satstore.reports.plots.style import MODEL, NOTE, break_text, legend_below, with_plain_names
from satstore.reports.published import ACCURACY, CURVES
from satstore.runs.run import Run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from numpy.typing import NDArray

PANEL = (3.5, 2.75)
"""Width and height of a panel in inches: a column of a two-column page."""
SIZE = 7.5
"""The size of a panel's letters in points."""
POSITIONED = "SmallRandomPositioning"


@dataclass(frozen=True)
class Panel:
    """One experiment of a figure."""

    config: ExperimentConfig
    run: Run | None
    command: str

    @property
    def tables(self) -> list[ProbeKey]:
        """The tables of probes that the config asks for, of the last epoch."""
        return [ProbeKey(LatentsKey(pooling)) for pooling in self.config.pooling]

    @property
    def lacks(self) -> list[str]:
        """The missing results that the config asks for: ``training``, ``saturation``, ``probes``, …"""
        run, stages = self.run, self.config.stages
        if run is None or not run.layers:
            return ["training"]
        lacking = [] if run.manifest.summary.saturation or "saturation" not in stages else ["saturation"]
        if "probe" in stages:
            lacking += [f"probes at {key}" for key in self.tables if not run.has_file(key.file)]
        if "receptive-field" in stages:
            lacking += [] if run.has_file("receptive_field.csv") else ["receptive field"]
        return lacking


def drop_repeated(panels: Sequence[Panel]) -> list[Panel]:
    """Leave out randomly positioned images without room to move, which equal the plain ones."""
    plain = {(p.config.model, p.config.dataset, p.config.resolution) for p in panels}
    lowest = min(p.config.resolution for p in panels)

    def is_repeated(config: ExperimentConfig) -> bool:
        of_plain = (config.model, config.dataset.removesuffix(POSITIONED), config.resolution)
        return config.dataset.endswith(POSITIONED) and config.resolution == lowest and of_plain in plain

    kept = [panel for panel in panels if not is_repeated(panel.config)]
    if len(kept) == len(panels):
        return kept
    # Small, small on a large canvas, large.
    return sorted(kept, key=lambda p: (p.config.resolution, not p.config.dataset.endswith(POSITIONED)))


@with_plain_names
def plot_paper_figure(panels: Sequence[Panel], published: bool = False) -> Figure:
    """Draw a panel per experiment: both curves, the model's accuracy, the border layer; heat maps below."""
    panels = drop_repeated(panels)
    n_columns = len(panels) if len(panels) <= 3 else 2
    n_rows = -(-len(panels) // n_columns)
    maps = [_maps_of(panel) for panel in panels]
    heights = [0.3 + 1.25 * -(-len(found) // N_COLUMNS) if found else 0.0 for found in maps]
    width = PANEL[0] * n_columns if not any(heights) else max(PANEL[0] * n_columns, 2 * PANEL[0])
    figure = Figure(figsize=(width, PANEL[1] * n_rows + sum(heights) + 0.5), layout="constrained")
    top: Figure | SubFigure = figure
    below: list[SubFigure] = []
    if any(heights):
        top, *below = _stack(figure, [PANEL[1] * n_rows, *filter(None, heights)])
    grid = top.subplots(n_rows, n_columns, squeeze=False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    drawn = list(zip(panels, grid.flat, strict=False))
    for (panel, axes), name in zip(drawn, name_experiments([p.config for p in panels]), strict=True):
        draw_panel(axes, panel, name, published)
    for (panel, found), part in zip(
        [pair for pair in zip(panels, maps, strict=True) if pair[1]], below, strict=True
    ):
        assert panel.run is not None
        draw_maps(part, found, shown_layers(panel.run), model_accuracy(panel.run, None), SIZE)
    legend_below(figure, [axes for _, axes in drawn], SIZE, _without_value)
    return figure


def _maps_of(panel: Panel) -> "dict[str, NDArray[np.float64]]":
    """Return a panel's heat maps, if its config asks for any."""
    if panel.run is None or PIXELWISE not in panel.config.pooling:
        return {}
    return pixelwise_maps(panel.run, shown_layers(panel.run))


def _stack(figure: Figure, heights: Sequence[float]) -> "list[SubFigure]":
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    return list(parts)


def draw_panel(axes: "Axes", panel: Panel, name: str, published: bool) -> None:
    """Draw one experiment under its name, or an empty frame with the command that fills it."""
    axes.set_title(break_text(name, PANEL[0], SIZE), fontsize=SIZE)
    axes.tick_params(labelsize=SIZE - 1)
    run, is_drawn = panel.run, False
    if run is not None and run.layers:
        layers = shown_layers(run)
        is_drawn = draw_layer_curves(
            axes, run, layers, tables=panel.tables, size=SIZE - 1.5, width=PANEL[0] - 0.5
        )
        axes.set_ylabel("saturation, accuracy", fontsize=SIZE)
        if published:
            draw_published(axes, panel.config, len(layers))
    if not is_drawn:
        draw_empty(axes, panel)
        return
    reached = [line for line in axes.get_lines() if f"{line.get_label()}".startswith("model accuracy")]
    if reached:
        reached[0].set_gid("model")
        axes.legend(handles=reached, loc="best", fontsize=SIZE - 1, framealpha=0.8, edgecolor="none")
    if panel.lacks:
        words = f"no {', '.join(panel.lacks)} yet: {panel.command}"
        _write_in_frame(axes, words, 0.02, "bottom", SIZE - 2.5)


def draw_empty(axes: "Axes", panel: Panel) -> None:
    """Draw an empty frame with the command that fills it."""
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_linestyle((0, (4, 4)))
        spine.set_color("#999999")
    is_running = panel.run is not None and panel.run.status("train") == "running"
    words = "is being trained" if is_running else f"not there yet; run:\n{panel.command}"
    _write_in_frame(axes, words, 0.5, "center", SIZE - 1)


def _write_in_frame(axes: "Axes", words: str, height: float, side: Any, size: float) -> None:
    wrapped = (textwrap.wrap(part, 46, break_on_hyphens=False) for part in words.splitlines())
    text = "\n".join(line for lines in wrapped for line in lines)
    axes.text(0.5, height, text, ha="center", va=side, fontsize=size, color=NOTE, transform=axes.transAxes)


def draw_published(axes: "Axes", config: ExperimentConfig, n_layers: int) -> None:
    """Draw the published values of an experiment, if any, as faint markers."""
    setting = (config.model, config.dataset, config.resolution)
    curves = CURVES.get(setting)
    faint: Any = {"linestyle": "none", "alpha": 0.45, "markerfacecolor": "none", "markersize": 7}
    if curves is not None and len(curves.saturation) == n_layers:
        places = range(n_layers)
        axes.plot(places, curves.saturation, "o", color=SATURATION, label="published saturation", **faint)
        axes.plot(
            places, curves.probe_accuracy, "s", color=PROBES[0], label="published probe accuracy", **faint
        )
    if setting in ACCURACY:
        label = "published model accuracy"
        axes.plot([n_layers - 0.62], [ACCURACY[setting]], "<", color=MODEL, label=label, **faint)


def _without_value(label: str) -> str:
    """Return the label of a line for all panels: without the model's accuracy, which differs."""
    return "model accuracy" if label.startswith("model accuracy") else label


# Table 1

SCALED = "Resized"
LARGE_PX = 224


def tabulate_relative(panels: Sequence[Panel]) -> "pd.DataFrame":
    """Tabulate test accuracies relative to those of the same model on the same images, large and unscaled.

    Returns
    -------
    pandas.DataFrame
        A row per model and dataset, and per seed or whatever else several of a size differ in, which is
        named beside the model: model, dataset; for each size, such as ``32 px`` or ``224 px, scaled up
        from 32 px``, the share of the accuracy at ``224 px``, NaN where either is missing; and that accuracy.
    """
    import pandas as pd

    found: dict[tuple[str, str], dict[str, float]] = {}
    cells: dict[tuple[str, str, int], list[ExperimentConfig]] = {}
    for config in (panel.config for panel in panels):
        cells.setdefault((config.model, config.dataset, config.resolution), []).append(config)
    varied = {key for configs in cells.values() for key in varied_keys(configs)}
    for panel in panels:
        config, run = panel.config, panel.run
        accuracy = None if run is None else run.manifest.summary.test_accuracy
        is_scaled = config.dataset.startswith(SCALED)
        column = f"{config.resolution} px" + (", scaled up from 32 px" if is_scaled else "")
        model = ", ".join([config.model, *(describe_value(config, key) for key in KEYS if key in varied)])
        row = found.setdefault((model, config.dataset.removeprefix(SCALED)), {})
        if is_scaled and config.resolution < LARGE_PX:
            continue  # scaled down to 32 px and not up: the plain image at 32 px again
        row[column] = float("nan") if accuracy is None else accuracy
    rows = []
    for (model, dataset), accuracies in found.items():
        whole = accuracies.get(f"{LARGE_PX} px", float("nan"))
        by = whole or float("nan")  # of an accuracy of 0, nothing is a share
        shares = {column: accuracy / by for column, accuracy in accuracies.items()}
        rows.append({"model": model, "dataset": dataset, **shares, f"accuracy at {LARGE_PX} px": whole})
    return pd.DataFrame(rows)


@with_plain_names
def plot_relative(table: "pd.DataFrame", missing: Sequence[str]) -> Figure:
    """Draw the table of relative accuracies, and the commands that fill its gaps."""
    cells = [[_as_cell(value) for value in row] for row in table.itertuples(index=False)]
    columns = [textwrap.fill(f"{column}", 14) for column in table.columns]
    notes = [line for text in missing for line in textwrap.wrap(text, 95, break_on_hyphens=False)]
    height = 0.9 + 0.28 * len(cells) + 0.13 * len(notes)
    figure = Figure(figsize=(2 * PANEL[0], height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_title("test accuracy relative to that at 224 px, not scaled up", fontsize=SIZE + 1)
    drawn = axes.table(cells, colLabels=columns, loc="upper center", cellLoc="right", edges="horizontal")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(SIZE)
    for (row, column), cell in drawn.get_celld().items():
        cell.set_height((0.42 if row == 0 else 0.28) / height)
        if column < 2:
            cell.get_text().set_horizontalalignment("left")
    if notes:
        look: Any = {"fontsize": SIZE - 2, "color": NOTE, "va": "bottom"}
        axes.text(0, 0, "\n".join(notes), transform=axes.transAxes, **look)
    return figure


def _as_cell(value: object) -> str:
    if isinstance(value, str):
        return value
    return "–" if value != value else f"{value:.1%}"
