"""The statistics that a tracker computes from a layer's samples."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from satstore.analysis.moments import Moments, NonFiniteError
from satstore.analysis.spectrum import Definition, eigenvalues, intrinsic_dimension
from satstore.errors import ConfigError

STATS: Mapping[str, str] = {
    "lsat": "saturation",
    "idim": "intrinsic-dimensionality",
    "cov": "covariance-matrix",
    "det": "covariance-determinant",
    "trc": "covariance-trace",
    "dtrc": "diagonal-trace",
    "embed": "embedded-sample",
}
"""Each statistic's name in columns and files."""

Value = float | NDArray[np.float64]
"""A statistic's value: a number, or a matrix."""


def choose_stats(stats: str | Iterable[str]) -> tuple[str, ...]:
    """Return the statistics that names stand for; ``lsat`` is of both splits, and includes ``lsat_eval``.

    Raises ConfigError if a name is unknown.
    """
    names = (stats,) if isinstance(stats, str) else tuple(stats)
    for name in names:
        stat, _, mode = name.partition("_")
        if name not in STATS and not (stat in names and stat in STATS and mode in ("train", "eval")):
            raise ConfigError(f"no statistic {name!r}; known: {', '.join(STATS)}")
    return tuple(dict.fromkeys(name for name in names if name in STATS))


@dataclass
class TrackedLayer:
    """A layer's moments in one mode, of training or evaluation.

    The last batch's samples (sample, feature) are kept where samples are to be embedded.
    """

    moments: Moments = field(default_factory=Moments)
    saved_samples: Tensor | None = None
    is_finite: bool = True

    def update(self, samples: Tensor, keep: bool) -> None:
        """Add a batch's samples; with `keep`, store them as `saved_samples`."""
        if not self.is_finite:
            return
        try:
            self.moments.update(samples)
        except NonFiniteError:
            self.is_finite = False
        if keep:
            self.saved_samples = samples.clone()  # a later layer may overwrite the output in place

    def fix(self) -> Tensor:
        """Return the covariance, (feature, feature) float64; the name is delve's."""
        return self.moments.covariance()

    def compute(self, stats: Iterable[str], delta: float, definition: Definition) -> dict[str, Value]:
        """Compute statistics, by name; NaN where a sample was not finite."""
        if not self.is_finite:
            return dict.fromkeys(stats, float("nan"))
        covariance = self.fix().cpu().numpy()
        return {stat: self._compute(stat, covariance, delta, definition) for stat in stats}

    def _compute(
        self, stat: str, covariance: NDArray[np.float64], delta: float, definition: Definition
    ) -> Value:
        if stat == "cov":
            return covariance
        if stat == "trc":
            return float(np.trace(covariance))
        if stat == "det":
            return float(np.linalg.det(covariance))
        if stat == "embed":
            assert self.saved_samples is not None
            samples = self.saved_samples.cpu().double().numpy()
            return embed(samples, self.moments.mean.cpu().numpy(), covariance, definition)
        spectrum = eigenvalues(covariance)
        if stat == "dtrc":
            return float(spectrum.sum())
        dimension = float(intrinsic_dimension(spectrum, delta, definition))
        return dimension if stat == "idim" else dimension / len(spectrum)


def embed(
    samples: NDArray[np.float64],
    mean: NDArray[np.float64],
    covariance: NDArray[np.float64],
    definition: Definition,
) -> NDArray[np.float64]:
    """Project samples (sample, feature) onto a plane; return (sample, 2), the second 0 for a single feature.

    Mean (feature,) and covariance (feature, feature) are those of all samples. ``exact``: by their
    coordinates, about the mean, along the two eigenvectors of most variance, the largest component of each
    positive. ``delve``: by the first two components of CᵀC x, C being the covariance's first two rows, which
    is what delve 0.1.50 computes.
    """
    if definition == "delve":
        first = covariance[:2]
        found = (samples @ (first.T @ first))[:, :2]
    else:
        axes = np.linalg.eigh(covariance).eigenvectors[:, :-3:-1]
        largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
        found = (samples - mean) @ (axes * np.sign(largest))
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))
