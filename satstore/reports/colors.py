"""The colours of quantities and runs, in figures and in the terminal: Okabe and Ito's.

People with any colour vision tell them apart; markers differ too. A quantity has one hue everywhere; on a
dark terminal the saturation's blue is the lighter one.
"""

SATURATION = "#0072B2"
SATURATION_LIGHT = "#56B4E9"
PROBES = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#F0E442")
TRAIN = "#8C8C8C"
"""The model's own numbers on the train split; on the eval split they are black, or white on dark."""
RUNS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#F0E442", "#0072B2")
