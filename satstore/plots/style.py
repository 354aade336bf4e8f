"""What all figures share: markers, axes of shares, titles, and how they are written."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from satstore.errors import ConfigError
from satstore.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MARKERS = ("s", "^", "D", "v", "P")
MODEL = "#000000"
NOTE = "#666666"
RUN_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

SUFFIXES = (".png", ".svg", ".pdf")
WIDEST = 100.0
"""Inches, of a figure that grows with the layers: what a picture of thousands would take, no machine has."""

P = ParamSpec("P")
T = TypeVar("T")


def with_plain_names(draw: Callable[P, T]) -> Callable[P, T]:
    """Let what a function draws show names as they are: layers' and paths' dollar signs begin no formula."""

    @wraps(draw)
    def plain(*args: P.args, **kwargs: P.kwargs) -> T:
        from matplotlib import rc_context

        with rc_context({"text.parse_math": False}):
            return draw(*args, **kwargs)

    return plain


def finish_axes(axes: "Axes", label: str) -> None:
    """Give the axes of shares their look."""
    axes.set_ylim(0, 1.02)
    axes.set_ylabel(label)
    tidy_axes(axes)


def tidy_axes(axes: "Axes") -> None:
    """Give axes a light grid behind what is drawn, and no frame."""
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def name_places(
    axes: "Axes",
    places: "list[float] | range",
    names: list[str],
    size: float = 8,
    width: float | None = None,
) -> None:
    """Name the places of layers, from the bottom to the top; of more than there is room for, every second, …

    Parameters
    ----------
    size
        Of the names, in points.
    width
        Of the axes, in inches; by default there is room for 60.
    """
    n_fit = 60 if width is None else max(1, int(width * 72 / (1.25 * size)))
    step = max(1, -(-len(names) // n_fit))
    axes.set_xticks(places[::step], names[::step], rotation=90, fontsize=size)
    axes.set_xlim(-0.5, max(1, len(names)) - 0.5)


def break_name(name: str, n_fit: float) -> str:
    """Return a layer's name in lines of a number of letters, broken after dots; a longer part stays whole."""
    lines = [""]
    for part in re.split(r"(?<=\.)", name):
        if lines[-1] and len(lines[-1]) + len(part) > n_fit:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def legend_below(
    figure: "Figure",
    axes: "Sequence[Axes]",
    size: float = 8,
    name: Callable[[str], str] = lambda label: label,
) -> None:
    """Explain the lines of some axes below them: inside, it would cover one curve or the other.

    Parameters
    ----------
    name
        From a line's label to its name here; of those of one name, the first is shown.
    """
    shown: dict[str, Line2D] = {}
    for line in (line for part in axes for line in part.get_lines()):
        label = f"{line.get_label()}"
        if not label.startswith("_"):
            shown.setdefault(name(label), line)
    if not shown:
        return
    # As many side by side as fit the width: a label takes about half its font size per letter.
    longest = max(map(len, shown)) * size * 0.55 + 45
    n_fit = max(1, int(figure.get_figwidth() * 72 / longest))
    figure.legend(
        shown.values(),
        shown.keys(),
        loc="outside lower center",
        ncols=min(n_fit, len(shown)),
        frameon=False,
        fontsize=size,
    )


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure whole or not at all, its letters as letters where the format has them.

    Raises
    ------
    ConfigError
        If the name ends in none of .png, .svg and .pdf.
    """
    from matplotlib import rc_context

    content = io.BytesIO()
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"can't draw {path}: expected a name that ends in .png, .svg or .pdf")
    with (
        rc_context({"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "satstore"}),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", UserWarning)  # of letters that no font has, and names without room
        figure.savefig(content, format=suffix[1:], dpi=150)
    write_file(path, content.getvalue())
