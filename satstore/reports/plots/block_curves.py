"""The figure of saturation and probe accuracy over the depth of a network, a curve for each part."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from satstore.config.latent_keys import ProbeKey
from satstore.reports.blocks import (
    OUTSIDE,
    WHOLE,
    Places,
    choose_limits,
    choose_ticks,
    drawn_parts,
    group_parts,
    name_depths,
)
from satstore.reports.colors import PARTS
from satstore.reports.plots.style import (
    LETTER,
    MODEL,
    NOTE,
    RUN_MARKERS,
    break_name,
    break_text,
    draw_curve,
    finish_axes,
    legend_below,
)
from satstore.system.text import clean, list_first

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = 7.0, 5.0
"""Width and height in inches, whatever the depth: a page's width."""

LINE_STYLES: Mapping[str, Any] = {"mean": "-", "cls": "--", "last": ":", "all": "-."}
MORE_LINE_STYLES = ((0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))
"""Of single tokens, such as ``token5``."""

MOST_TABLES = 4
"""The tables of probes that are drawn: curves of more line styles are not told apart."""

LONGEST = 14
"""The letters of a line of a name below the axis."""


@dataclass(frozen=True)
class BlockCurves:
    """What is drawn of a run: values by layer, what probes were fitted to, and lines beside them."""

    places: Places
    layers: Sequence[str]
    saturation: Mapping[str, float] | None = None
    saturation_label: str = "saturation"
    probes: Mapping[ProbeKey, Mapping[str, float]] = field(default_factory=dict)
    target: str = ""
    model_accuracy: float | None = None
    border: str | None = None

    @property
    def depths(self) -> list[int]:
        """The depths of the layers that are drawn."""
        return sorted({self.places[layer].depth for layer in self.layers})

    @property
    def spacing(self) -> float:
        """Points between two depths."""
        return (SIZE[0] - 0.8) * 72 / (max(self.depths) - min(self.depths) + 1)

    @property
    def parts(self) -> dict[str, list[str]]:
        """The layers of each part that is drawn."""
        return drawn_parts(self.places, self.layers)

    @property
    def tables(self) -> list[ProbeKey]:
        """The tables of probes that are drawn."""
        return list(self.probes)[:MOST_TABLES]

    def left_out(self) -> str:
        """Return a note on the parts and tables that are not drawn; empty if all are."""
        parts = [part for part in group_parts(self.places, self.layers) if part not in self.parts]
        tables = [f"probes {key.latents.group}" for key in self.probes if key not in self.tables]
        return f"not drawn: {list_first([*parts, *tables], 4)}" if parts or tables else ""


def plot_blocks(title: str, curves: BlockCurves) -> Figure:
    """Draw saturation above, the accuracy of probes below, over the depth.

    A part of the blocks has a colour and a marker, a token mode a line style; markers of poolings are hollow.
    At most MOST_PARTS parts are drawn.
    """
    has_both = curves.saturation is not None and bool(curves.probes)
    figure = Figure(figsize=SIZE if has_both else (SIZE[0], 3.6), layout="constrained")
    ratios = [2, 3] if has_both else [1]  # there are more curves of probes
    panels = list(figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0])
    if curves.saturation is not None:
        draw_saturation(panels[0], curves)
    if curves.probes:
        draw_probes(panels[-1], curves)
    border = curves.places.get(curves.border or "")
    if border is not None:
        for axes in panels:
            axes.axvline(border.depth, color=MODEL, linestyle=":", linewidth=1.2, label="border layer")
    label_depths(panels[-1], curves)
    panels[0].set_title(break_text(title, SIZE[0] - 1, 11), fontsize=11)
    note = curves.left_out()
    if note:
        panels[-1].plot([], [], " ", label=note)
    legend_below(figure, panels)
    return figure


def draw_saturation(axes: "Axes", curves: BlockCurves) -> None:
    """Draw the saturation of each part over the depth."""
    values = curves.saturation or {}
    for layers, look in style_parts(curves):
        draw_part(axes, curves, layers, values, look)
    finish_axes(axes, curves.saturation_label)
    axes.set_ylim(0, choose_limits(values.values())[1])


def draw_probes(axes: "Axes", curves: BlockCurves) -> None:
    """Draw the accuracy of the probes of each part over the depth, and the model's accuracy."""
    tables = curves.tables
    for key, style in style_tables(tables):
        for layers, look in style_parts(curves):
            draw_part(axes, curves, layers, curves.probes[key], look | style)
        if len(tables) > 1:
            axes.plot([], [], **({"color": NOTE} | style), label=f"probes {key.latents.group}")
    reached = curves.model_accuracy
    if reached is not None:
        label = f"model accuracy {reached:.1%}"
        axes.axhline(reached, color=MODEL, linestyle="--", linewidth=1, label=label)
    of = [name for name in (curves.target, tables[0].latents.group if len(tables) == 1 else "") if name]
    finish_axes(axes, f"probe accuracy ({', '.join(of)})" if of else "probe accuracy")
    values = [value for key in tables for value in curves.probes[key].values()]
    axes.set_ylim(*choose_limits([*values, 1.0 if reached is None else reached]))


def style_parts(curves: BlockCurves) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Yield the layers of each part, and how its curves look."""
    for number, (part, layers) in enumerate(curves.parts.items()):
        look = {"markersize": min(4, 0.5 * curves.spacing), "linewidth": 1.3, "label": part}
        color, marker = (NOTE, "*") if part == OUTSIDE else (PARTS[number], RUN_MARKERS[number])
        # The whole blocks lie over the others, from which they often differ little.
        yield layers, look | {"color": color, "marker": marker, "zorder": 2.5 if part == WHOLE else 2}


def style_tables(tables: Sequence[ProbeKey]) -> Iterator[tuple[ProbeKey, dict[str, Any]]]:
    """Yield tables of probes, and how their curves look; dots in place of markers, which hide line styles."""
    more, poolings = cycle(MORE_LINE_STYLES), cycle(LINE_STYLES.values())
    for key in tables:
        if not key.latents.is_of_tokens:
            yield key, {"linestyle": next(poolings), "marker": "o", "markerfacecolor": "none"}
        elif len(tables) > 1:
            style = LINE_STYLES.get(key.latents.group) or next(more)
            yield key, {"linestyle": style, "marker": ".", "markersize": 3}
        else:
            yield key, {}


def draw_part(
    axes: "Axes", curves: BlockCurves, layers: Sequence[str], found: Mapping[str, float], look: dict[str, Any]
) -> None:
    """Draw the values of a part, if it has any."""
    if look["label"] == OUTSIDE:  # they lie apart
        look = look | {"linestyle": ""}
    if any(layer in found for layer in layers):
        draw_curve(axes, [curves.places[layer].depth for layer in layers], layers, found, **look)


def label_depths(axes: "Axes", curves: BlockCurves, size: float = 8) -> None:
    """Label the ticks of depths: layers of no block by name, and blocks by number where there is room."""
    common, names = name_depths(curves.places)
    first, last = min(curves.depths), max(curves.depths)
    axes.set_xlim(first - 0.5, last + 0.5)
    is_flat = {depth: len(names[depth]) <= 3 for depth in curves.depths}
    shown = {depth: names[depth] if flat else shorten_name(names[depth]) for depth, flat in is_flat.items()}
    # 1. The ticks that have room: a letter is LETTER of its size wide, a line 1.1 of it high.
    widths = {
        depth: size * ((len(shown[depth]) + 0.8) * LETTER if flat else 1.1 * shown[depth].count("\n") + 1.1)
        for depth, flat in is_flat.items()
    }
    outside = {place.depth for place in curves.places.values() if not place.block}
    numbers = [depth for depth, flat in is_flat.items() if flat and depth not in outside]
    ticks = choose_ticks({depth: width / curves.spacing for depth, width in widths.items()}, numbers)
    axes.set_xticks(ticks, [shown[depth] for depth in ticks], fontsize=size)
    # 2. Long names upright, and what the numbers are in the widest gap between these.
    for tick, label in zip(ticks, axes.get_xticklabels(), strict=True):
        if not is_flat[tick]:
            label.set(rotation=90, fontsize=size - 1, linespacing=0.95)
    upright = [first - 1, *(tick for tick in ticks if not is_flat[tick]), last + 1]
    start, end = max(itertools.pairwise(upright), key=lambda gap: gap[1] - gap[0])
    axes.annotate(
        f"block N ({clean(common)}N)" if common and numbers else "",
        ((start + end) / 2, 0),
        (0, -1.6 * size - 8),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=size + 1,
    )


def shorten_name(name: str) -> str:
    """Return a name in at most two lines, of which the first has its beginning and the second its end."""
    lines = break_name(clean(name), LONGEST).splitlines()
    first, last = lines[0], lines[-1]
    cut = [first if len(first) <= LONGEST else f"{first[: LONGEST - 1]}…"] if len(lines) > 1 else []
    cut += [last if len(last) <= LONGEST else f"…{last[1 - LONGEST :]}"]
    return "…\n".join(cut) if len(lines) > 2 else "\n".join(cut)
