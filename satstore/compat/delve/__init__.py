"""Saturation of any model in any training loop: a callback that stands in for delve's.

``from satstore.compat.delve import …`` has the names of ``delve`` and of ``delve.writers``.
What is written is what delve writes: columns such as ``train-saturation_features-0`` in ``;``-separated CSV
files. In what satstore differs, docs/moving-from-phd-lab.md says.
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
"""The name that older versions of delve have for it."""

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
