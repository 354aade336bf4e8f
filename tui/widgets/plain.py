"""Widgets that show what they are given as it is: names, paths and errors from outside are never markup.

Textual takes a string for markup unless it is told otherwise: a layer ``conv[/a]`` would end the app, and
``conv[a]`` read ``conv``. No module uses Textual's own ``Static``, and labels and tooltips are made with
:func:`as_text`.
"""

from typing import Any

from textual import widgets
from textual.content import Content

from satstore.system.text import clean


def as_text(text: str) -> Content:
    """Return a text in one line that a widget shows and does not read as markup."""
    return Content(clean(text))


class Static(widgets.Static):  # noqa: TID251 - of which this is made
    """A text, or anything that Rich or Textual can draw; a string has no markup."""

    def __init__(self, content: Any = "", **options: Any) -> None:
        super().__init__(content, markup=False, **options)
