"""Checks that the texts of a figure can be read."""

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def check_texts(figure: Figure) -> None:
    """Check that no label lies outside of the figure or over another one."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    whole = figure.bbox
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        texts = [axes.title, *(axes.get_xticklabels() if axes.axison else []), *axes.texts]
        boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
        for box in boxes:
            assert whole.x0 - 1 <= box.x0
            assert box.x1 <= whole.x1 + 1
            assert whole.y0 - 1 <= box.y0
            assert box.y1 <= whole.y1 + 1
        ticks = [text.get_window_extent(renderer) for text in axes.get_xticklabels() if text.get_text()]
        for left, right in itertools.pairwise(ticks):
            assert left.x1 <= right.x0 + 1.5, "names of layers overlap"
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        assert whole.x0 - 1 <= box.x0
        assert box.x1 <= whole.x1 + 1
