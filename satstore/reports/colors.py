"""The colours of quantities and runs in figures and in the terminal: Okabe and Ito's palette.

People with any colour vision can tell them apart; markers differ too. A quantity has the same hue everywhere;
on a dark terminal the saturation has the lighter blue.
"""

SATURATION = "#0072B2"
SATURATION_LIGHT = "#56B4E9"
PROBES = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#F0E442")
TRAIN = "#8C8C8C"
"""The colour of the model's numbers on the train split; on the eval split: black, or white on dark."""
RUNS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#F0E442", "#0072B2")
PARTS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""The colours of the parts of blocks."""
