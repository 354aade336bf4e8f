"""The colours of the terminal app, on a dark ground, beside those that figures have too."""

from satstore.reports import colors

SATURATION = colors.SATURATION_LIGHT
RUNS = (*colors.RUNS, "#BBBBBB")
MARKERS = ("■", "▲", "◆", "▼", "✚", "★", "●", "✖")
PARTS = (colors.PARTS[-1], *colors.PARTS[1:-1], colors.PARTS[0])
MODEL = "#BBBBBB"
BORDER = "#F0E442"
TAIL = "#E69F00"
CURSOR = "#888888"
