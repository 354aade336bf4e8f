"""The colours of quantities and runs: Okabe and Ito's, which people with any colour vision tell apart.

Markers differ too. On a dark terminal the lighter blue is the saturation's.
"""

SATURATION = "#56B4E9"
SATURATION_EVAL = "#0072B2"
PROBES = ("#E69F00", "#CC79A7", "#009E73", "#D55E00", "#F0E442")
RUNS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#F0E442", "#0072B2", "#BBBBBB")
MARKERS = ("■", "▲", "◆", "▼", "✚", "★", "●", "✖")
MODEL = "#BBBBBB"
BORDER = "#F0E442"
TAIL = "#D55E00"
CURSOR = "#888888"
