"""The common style of all figures: markers, axes, names, legends; and writing them to files."""

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from satstore.errors import ConfigError, printable
from satstore.storage.files import write_file
from satstore.system.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MARKERS = ("s", "^", "D", "v", "P", "X", "*")
"""Their number has no common divisor with that of the probes' colours, so that few curves look alike."""
MODEL = "#000000"
NOTE = "#666666"
RUN_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

SUFFIXES = (".png", ".svg", ".pdf")
LETTER = 0.55
"""The average width of a letter, as a share of its size."""
WIDEST = 100.0
"""The largest width in inches: a figure of thousands of layers would not fit into memory."""

PLAIN: "Mapping[Any, bool]" = {
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
}
"""Settings that show names unchanged: dollar signs begin no formula, backslashes no TeX."""

P = ParamSpec("P")
T = TypeVar("T")

UNNAMED = re.compile(r"_child\d+")
"""matplotlib's labels of lines without one; other names that begin with ``_`` are models' own."""


def with_plain_names(draw: Callable[P, T]) -> Callable[P, T]:
    """Make a drawing function show names unchanged, whatever the user's matplotlib settings."""

    @wraps(draw)
    def plain(*args: P.args, **kwargs: P.kwargs) -> T:
        from matplotlib import rc_context

        with rc_context(dict(PLAIN)):
            return draw(*args, **kwargs)

    return plain


def finish_axes(axes: "Axes", label: str) -> None:
    """Style axes of shares: from 0 to 1, with a label."""
    axes.set_ylim(0, 1.02)
    axes.set_ylabel(label)
    tidy_axes(axes)


def tidy_axes(axes: "Axes") -> None:
    """Give axes a light grid in the background, and no frame."""
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_curve(
    axes: "Axes", places: Sequence[float], layers: Sequence[str], found: Mapping[str, float], **look: Any
) -> None:
    """Draw values over layers, with a gap where there is none, and a cross where it is NaN."""
    axes.plot(places, [found.get(layer, math.nan) for layer in layers], **({"markersize": 5} | look))
    bad = [place for place, layer in zip(places, layers, strict=True) if math.isnan(found.get(layer, 0.0))]
    if bad:
        label = f"{look['label']}: no number"
        foot = 0.012 + 0.03 * len([line for line in axes.get_lines() if line.get_marker() == "x"])
        axes.plot(bad, [foot] * len(bad), "x", color=look["color"], markersize=8, clip_on=False, label=label)


def name_places(
    axes: "Axes",
    places: "list[float] | range",
    names: list[str],
    size: float = 8,
    width: float | None = None,
) -> None:
    """Label the ticks of layers with their names; every second, third, … if there is no room for all.

    Parameters
    ----------
    width
        Width of the axes in inches; by default there is room for 60 names.
    """
    n_fit = 60 if width is None else max(1, int(width * 72 / (1.25 * size)))
    step = max(1, -(-len(names) // n_fit))
    axes.set_xticks(places[::step], [clean(name) for name in names[::step]], rotation=90, fontsize=size)
    axes.set_xlim(-0.5, max(1, len(names)) - 0.5)


def break_name(name: str, n_fit: float) -> str:
    """Break a layer's name after dots into lines of a number of letters; longer parts stay whole."""
    lines = [""]
    for part in re.split(r"(?<=\.)", name):
        if lines[-1] and len(lines[-1]) + len(part) > n_fit:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def break_text(text: str, width: float, size: float) -> str:
    """Break a text into lines of a width in inches, for letters of a size in points."""
    return textwrap.fill(clean(text), max(20, int(width * 72 / (LETTER * size))))


def legend_below(
    figure: "Figure",
    axes: "Sequence[Axes]",
    size: float = 8,
    name: Callable[[str], str] = lambda label: label,
) -> None:
    """Add a legend of some axes below them: inside, it would cover a curve.

    Parameters
    ----------
    name
        Returns the name of a line from its label; of several lines with one name, the first is shown.
    """
    shown: dict[str, Line2D] = {}
    for line in (line for part in axes for line in part.get_lines()):
        label = f"{line.get_label()}"
        if not UNNAMED.fullmatch(label):
            shown.setdefault(name(label), line)
    if not shown:
        return
    width, mark = figure.get_figwidth(), 0.6
    labels = [break_text(label, width - mark, size) for label in shown]
    longest = max(len(line) for label in labels for line in label.splitlines())
    n_fit = max(1, int(width / (longest * LETTER * size / 72 + mark)))  # side by side
    figure.legend(
        shown.values(),
        labels,
        loc="outside lower center",
        ncols=min(n_fit, len(shown)),
        frameon=False,
        fontsize=size,
    )


def legend_beside(figure: "Figure", entries: "Sequence[tuple[str, Line2D]]", n_columns: int) -> None:
    """Add a legend to the right of the axes; names may begin with ``_``."""
    names, lines = [clean(name) for name, _ in entries], [line for _, line in entries]
    look = {"ncols": n_columns, "frameon": False, "fontsize": 7}
    figure.legend(lines, names, loc="outside right center", **look)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure to a file, whole or not at all; text stays text where the format allows.

    Raises
    ------
    ConfigError
        If the name ends in none of .png, .svg and .pdf.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    content = io.BytesIO()
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"can't draw {path}: expected a name that ends in .png, .svg or .pdf")
    for text in figure.findobj(Text):  # also in figures that satstore has not drawn
        text.set(text=printable(text.get_text()), parse_math=False, usetex=False)
    with (
        rc_context({**PLAIN, "svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "satstore"}),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", UserWarning)  # about letters that no font has, and names without room
        figure.savefig(content, format=suffix[1:], dpi=150)
    write_file(path, content.getvalue())
