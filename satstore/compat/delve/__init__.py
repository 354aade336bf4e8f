"""delve's interface: a saturation tracker for any model in any training loop, and its writers.

``from satstore.compat.delve import …`` has the names of ``delve`` and of ``delve.writers``. The files are
those of delve: columns such as ``train-saturation_features-0`` in ``;``-separated CSV files.
docs/moving-from-phd-lab.md lists the differences.
"""

from satstore.compat.delve.statistics import STATS
from satstore.compat.delve.tracker import SaturationTracker
from satstore.compat.delve.writers import (
    AbstractWriter,
    CSVandPlottingWriter,
    CSVWriter,
    NPYWriter,
    PrintWriter,
    TensorBoardWriter,
)

CheckLayerSat = SaturationTracker
"""The tracker's name in older versions of delve."""

__all__ = [
    "STATS",
    "AbstractWriter",
    "CSVWriter",
    "CSVandPlottingWriter",
    "CheckLayerSat",
    "NPYWriter",
    "PrintWriter",
    "SaturationTracker",
    "TensorBoardWriter",
]
