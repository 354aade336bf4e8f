"""Heat maps of the accuracy of probes at each position of a layer's map."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.errors import NotFoundError
from satstore.reports.plots.layer_curves import choose_shown, layers_one_by_one, model_accuracy
from satstore.reports.plots.style import WIDEST, break_name, break_text, with_plain_names
from satstore.runs.repair import probe_command
from satstore.runs.run import Run

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import SubFigure
    from numpy.typing import NDArray

PIXELWISE = "pixelwise"
COLORS = "cividis"
"""The colour map: perceptually uniform, also for colour-blind people."""
N_COLUMNS = 7


def pixelwise_maps(run: Run, layers: Sequence[str], target: str = "") -> "dict[str, NDArray[np.float64]]":
    """Return the accuracy of each position's probe, (y, x), for layers that have such probes."""
    key = ProbeKey(LatentsKey(PIXELWISE), target)
    if key not in run.manifest.shown_probes(target) or not run.has_file(key.file):
        return {}
    table = run.table(key.table)
    if not {"y", "x"} <= set(table):  # imported ones may not tell which position is which
        return {}
    return {
        f"{layer}": rows.pivot_table("eval_accuracy", "y", "x", dropna=False).to_numpy()
        for layer, rows in table[table["layer"].isin(list(layers))].groupby("layer")
    }


def draw_maps(
    figure: "Figure | SubFigure",
    maps: "Mapping[str, NDArray[np.float64]]",
    layers: Sequence[str],
    reached: float | None,
    size: float = 8,
) -> None:
    """Draw a heat map per layer of accuracies relative to the model's, or absolute if that is unknown."""
    found = [layer for layer in layers if layer in maps]
    n_columns = min(N_COLUMNS, len(found))
    n_rows = -(-len(found) // n_columns)
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    image: Any = None
    name_size = size - 1.5
    # A letter is 0.6 of its height wide on average; the colour bar and its label take the room of 0.7 maps.
    n_fit = figure.bbox.width / figure.dpi / (n_columns + 0.7) * 72 / (0.6 * name_size)
    for place, axes in enumerate(panels.flat):
        if place >= len(found):
            axes.set_visible(False)
            continue
        relative = maps[found[place]] / max(reached or 1.0, 1e-9)
        image = axes.imshow(relative, cmap=COLORS, vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        height, width = relative.shape
        name = break_name(found[place], n_fit)
        axes.set_title(f"{name}\n{height} × {width}", fontsize=name_size)
    bar = figure.colorbar(image, ax=panels, fraction=0.03, pad=0.01, aspect=30)
    of_what = "accuracy" if not reached else f"accuracy relative to the model's {reached:.1%}"
    bar.set_label(f"{of_what}\nby position", fontsize=name_size)
    bar.ax.tick_params(labelsize=size)


@with_plain_names
def plot_pixelwise(run: Run, all_layers: bool = False, target: str | None = None) -> Figure:
    """Draw a heat map of the pixelwise probes' accuracy per layer, relative to the model's.

    The target is as :func:`.plot_layers` has it; of one, the accuracy is drawn as it is.

    Raises
    ------
    NotFoundError
        If the run has no pixelwise probes.
    UnknownNameError
        If the run has no such target.
    """
    layers, note = layers_one_by_one(run, all_layers)
    target = choose_shown(run, target)
    maps = pixelwise_maps(run, layers, target)
    if not maps:
        raise NotFoundError(
            f"{run.name} has no pixelwise probes yet; run: satstore extract --run {run.name} -d pixelwise, "
            f"then: {probe_command(run, ProbeKey(LatentsKey(PIXELWISE), target))}"
        )
    n_rows = -(-len(maps) // N_COLUMNS)
    width = 1.6 + 1.35 * min(N_COLUMNS, max(3, len(maps)))
    figure = Figure(figsize=(width, min(WIDEST, 0.8 + 1.6 * n_rows)), layout="constrained")
    title = f"{run.config.title}: pixelwise probes{note}" + (f" ({target})" if target else "")
    figure.suptitle(break_text(title, width, 10), fontsize=10)
    draw_maps(figure, maps, layers, None if target else model_accuracy(run, None))
    return figure
