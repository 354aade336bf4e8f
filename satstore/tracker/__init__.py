"""Saturation of any model in any training loop: a callback that stands in for delve's.

``from satstore.tracker import …`` has what ``from delve import …`` and ``from delve.writers import …`` have.
What is written is what delve writes: columns such as ``train-saturation_features-0`` in ``;``-separated CSV
files. In what satstore differs, docs/moving-from-phd-lab.md says.
"""

from satstore.tracker.statistics import STATS
from satstore.tracker.tracker import SaturationTracker
from satstore.tracker.writers import (
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
