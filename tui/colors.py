"""The colours of the terminal app: those of the figures, on a dark ground, and of what only it draws."""

from satstore.reports.colors import PROBES as PROBES
from satstore.reports.colors import RUNS as OF_RUNS
from satstore.reports.colors import SATURATION as SATURATION_EVAL
from satstore.reports.colors import SATURATION_LIGHT as SATURATION
from satstore.reports.colors import TRAIN as TRAIN

__all__ = [
    "BORDER",
    "CURSOR",
    "MARKERS",
    "MODEL",
    "PROBES",
    "RUNS",
    "SATURATION",
    "SATURATION_EVAL",
    "TAIL",
    "TRAIN",
]

RUNS = (*OF_RUNS, "#BBBBBB")
MARKERS = ("■", "▲", "◆", "▼", "✚", "★", "●", "✖")
MODEL = "#BBBBBB"
BORDER = "#F0E442"
TAIL = "#E69F00"
CURSOR = "#888888"
