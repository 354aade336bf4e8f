"""Import of phd-lab's logs into runs.

phd-lab keeps an experiment in ``<logs>/<Model>/<Dataset>_<resolution>/<run id>/``: ``NAME.csv`` with metrics
and saturation, ``NAME_config.json``, ``NAME.pt``, tables of probes and of receptive fields, where NAME is
``Model-Dataset-r32-bs128-e30``; projections lie in the root. Its tables are separated by ``;``; accuracies
are in percent but for the probes', layers have ``-`` where PyTorch has ``.``, and saturation is delve's.
"""

from satstore.compat.phd_lab.importing import import_logs

__all__ = ["import_logs"]
