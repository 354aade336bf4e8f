"""A logistic regression's sizes, and the coordinates in which a solver walks.

The shapes: P problems (1, or one per position of a pixelwise probe), n rows of P · C features, k classes and
K outputs: k, or 1 for two classes.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.feature_moments import FeatureMoments
from satstore.analysis.floats import Floats

Float64s = NDArray[np.float64]

# The typical curvature of the losses, as a share of that of probabilities that are all 1/k. It falls while
# classes come apart. Passes to tol 1e-4 at 0.05, 0.02, 0.01 and 0.005: 50, 48, 53, 62 (4,096 conv features,
# half the labels drawn), 24, 21, 20, 20 (10 classes), 26, 21, 22, 27 (128 pixels, 200 classes).
CURVATURE = 0.01
# Rows whose covariance is taken for that of all: a quarter of them, and no more than these, nor than these
# values. On 20,000 x 4,096 features, 200 classes, 128, 256, 512 and 1,024 rows: 38, 27, 23, 18 passes.
SAMPLE_SHARE, SAMPLE_ROWS, SAMPLE_VALUES = 4, 1024, 2**23
# Of that covariance, the share that is replaced by each feature's own variance, which all rows tell.
SHRINKAGE = 0.1
# Directions of less curvature than this, beside the penalty's, are as well left as they are.
LEAST_CURVATURE = 0.1
# |mean| / std above which features are centred before the product and not after it: below, float32's
# rounding of the raw product is small against the spread, and the copy of each tile is saved.
CENTRE_ABOVE = 32.0


@dataclass(frozen=True)
class Problem:
    """What is to be solved: sizes, the objective's C, when the solver may stop, bytes of a stored value."""

    n_rows: int
    n_features: int
    n_classes: int
    C: float
    tol: float
    max_iter: int
    n_positions: int = 1
    value_bytes: int = 2

    @property
    def n_outputs(self) -> int:
        """K."""
        return self.n_classes if self.n_classes > 2 else 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(P, K, C + 1), of θ: a row of weights and an intercept per output."""
        return self.n_positions, self.n_outputs, self.n_features // self.n_positions + 1

    @property
    def n_coefficients(self) -> int:
        """The number of variables of one problem: K · (C + 1)."""
        return self.shape[1] * self.shape[2]

    @property
    def n_sample(self) -> int:
        """The number of rows from which the features' covariance is estimated."""
        return min(self.n_rows // SAMPLE_SHARE, SAMPLE_ROWS, SAMPLE_VALUES // self.n_features)

    @property
    def strength(self) -> float:
        """The losses' typical curvature by logits, summed over rows: C · n · h."""
        return self.C * self.n_rows * CURVATURE * (self.n_classes - 1) / self.n_classes**2


@dataclass(frozen=True)
class Coordinates:
    """The solver's coordinates: θ (P, K, C + 1), of which the last column is the intercept's.

    logits = (x − mean)·W + scale_b·θ[..., C], with W = scale∘(θ' + (θ'·basisᵀ∘gain)·basis), θ' = θ[..., :C].

    With the losses' curvature h and the features' covariance Σ, the objective's second derivative by each W_j
    is about H = I + C·n·h·Σ. In the coordinates it is about I: curved alike in all directions, those that the
    data determine and those that the penalty does, however many decades lie between. For Σ stands what a
    sample of rows says of it, shrunk towards the features' variances (Ledoit and Wolf 2004), so that
    H = D + a few directions: D is diagonal and gives the scale, and the others the basis and its gain, from
    an eigendecomposition of the sample's Gram matrix. Likewise scale_b = 1/√(C·n·h).

    Attributes
    ----------
    mean
        (P, C), of the features.
    shift
        (P, C), what is taken off the tiles: the mean rounded to float32, or None for nothing.
    scale
        (P, C + 1), the scales of the features, then the intercept's.
    basis
        (P, r, C), orthonormal rows.
    gain
        (P, r), 1/√curvature − 1 along each.
    """

    mean: Float64s
    shift: Float64s | None
    scale: Float64s
    basis: Float64s
    gain: Float64s

    @classmethod
    def of(cls, moments: FeatureMoments, sample: Floats, problem: Problem) -> Self:
        """Make the coordinates for the features' moments, and a sample (m, P · C) of the rows."""
        mean, std = (values.reshape(problem.n_positions, -1) for values in moments)
        relative = np.abs(mean) * np.sqrt(problem.strength / (1 + problem.strength * std**2))
        shift = mean.astype(np.float32).astype(np.float64) if relative.max() > CENTRE_ABOVE else None
        scale = 1 / np.sqrt(1 + SHRINKAGE * problem.strength * std**2)
        intercept = np.full((len(mean), 1), 1 / np.sqrt(problem.strength))
        spread = sample.reshape(len(sample), *mean.shape).swapaxes(0, 1) - mean[:, None]
        spread *= scale[:, None] * np.sqrt((1 - SHRINKAGE) * problem.strength / max(1, len(sample)))
        curvature, basis = principal_directions(spread)
        gain = 1 / np.sqrt(1 + curvature) - 1
        return cls(mean, shift, np.hstack([scale, intercept]), basis, gain)

    def at(self, positions: NDArray[np.int64]) -> Self:
        """Return the coordinates of some positions, ascending."""
        if len(positions) == len(self.mean):
            return self
        shift = None if self.shift is None else self.shift[positions]
        parts = (array[positions] for array in (self.scale, self.basis, self.gain))
        return type(self)(self.mean[positions], shift, *parts)

    @property
    def remainder(self) -> Float64s:
        """The mean of the tiles, (P, C)."""
        return self.mean if self.shift is None else self.mean - self.shift

    def model(self, theta: Float64s) -> tuple[Float64s, Float64s]:
        """Return W (P, K, C) and the offset (P, K) that belongs to the tiles, x − shift."""
        weights = self._along_basis(theta[..., :-1])
        weights += theta[..., :-1]
        weights *= self.scale[:, None, :-1]
        offset = theta[..., -1] * self.scale[:, None, -1]
        return weights, offset - np.einsum("pkc,pc->pk", weights, self.remainder)

    def pull_back(self, weights: Floats, intercept: Float64s) -> Float64s:
        """Turn gradients by W and by the tiles' offset into the gradient by θ, (P, K, C + 1)."""
        gradient = np.empty((*weights.shape[:2], weights.shape[2] + 1))
        np.multiply(intercept[..., None], -self.remainder[:, None], out=gradient[..., :-1])
        gradient[..., :-1] += weights
        gradient[..., -1] = intercept
        gradient *= self.scale[:, None]
        gradient[..., :-1] += self._along_basis(gradient[..., :-1])
        return gradient

    def _along_basis(self, values: Float64s) -> Float64s:
        """Return what the basis and its gain change of values (P, K, C)."""
        along: Float64s = values @ self.basis.swapaxes(1, 2)
        along *= self.gain[:, None]
        return along @ self.basis


def principal_directions(spread: Float64s) -> tuple[Float64s, Float64s]:
    """Return eigenvalues (P, r) and eigenvectors (P, r, C) of spreadᵀ·spread, for spread (P, m, C).

    Those above LEAST_CURVATURE, ascending: r is how many the position with the most of them has; others have
    zeros before their own.
    """
    n_rows, n_features = spread.shape[1:]
    if n_rows < n_features:
        values, vectors = np.linalg.eigh(spread @ spread.swapaxes(1, 2))
    else:
        values, vectors = np.linalg.eigh(spread.swapaxes(1, 2) @ spread)
    n_kept = int((values > LEAST_CURVATURE).sum(axis=1).max(initial=0))
    values, vectors = values[:, values.shape[1] - n_kept :], vectors[..., vectors.shape[2] - n_kept :]
    kept = np.where(values > LEAST_CURVATURE, values, 0)
    directions = np.ascontiguousarray(vectors.swapaxes(1, 2))
    if n_rows < n_features:
        directions = directions @ spread
        directions *= np.divide(1, np.sqrt(kept), out=np.zeros_like(kept), where=kept > 0)[..., None]
    return kept, directions
