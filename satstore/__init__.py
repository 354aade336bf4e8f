"""satstore: layer saturation, linear probes and receptive fields of neural networks, out of core.

The names below are imported from their modules when they are first used: ``import satstore`` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from satstore.analysis.logistic.estimator import LogisticProbe as LogisticProbe
    from satstore.analysis.receptive_field.table import receptive_field as receptive_field
    from satstore.compat.delve import SaturationTracker as SaturationTracker
    from satstore.config.experiment import ExperimentConfig as ExperimentConfig
    from satstore.config.grid import read_config as read_config
    from satstore.errors import SatstoreError as SatstoreError
    from satstore.reports.evidence import advise_on as advise_on
    from satstore.reports.figures import find_panels as find_panels
    from satstore.reports.plots import plot_layers as plot_layers
    from satstore.reports.plots import plot_paper_figure as plot_paper_figure
    from satstore.runs.logs_folder import find_runs as find_runs
    from satstore.runs.logs_folder import list_runs as list_runs
    from satstore.runs.logs_folder import open_run as open_run
    from satstore.runs.run import Run as Run
    from satstore.stages.pipeline import apply_stages as apply_stages
    from satstore.stages.pipeline import run_experiments as run_experiments
    from satstore.stages.record.features import record_features as record_features
    from satstore.stages.record.record import record as record
    from satstore.storage.zarr import open_latents as open_latents

_MODULES = {
    "ExperimentConfig": "satstore.config.experiment",
    "LogisticProbe": "satstore.analysis.logistic.estimator",
    "Run": "satstore.runs.run",
    "SaturationTracker": "satstore.compat.delve",
    "SatstoreError": "satstore.errors",
    "advise_on": "satstore.reports.evidence",
    "apply_stages": "satstore.stages.pipeline",
    "find_panels": "satstore.reports.figures",
    "find_runs": "satstore.runs.logs_folder",
    "list_runs": "satstore.runs.logs_folder",
    "open_latents": "satstore.storage.zarr",
    "open_run": "satstore.runs.logs_folder",
    "plot_layers": "satstore.reports.plots",
    "plot_paper_figure": "satstore.reports.plots",
    "read_config": "satstore.config.grid",
    "receptive_field": "satstore.analysis.receptive_field.table",
    "record": "satstore.stages.record.record",
    "record_features": "satstore.stages.record.features",
    "run_experiments": "satstore.stages.pipeline",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'satstore' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
