"""A change of variables in which the objective is curved about alike in all directions.

Shapes as in :mod:`.problem`: P problems of F features each, K outputs.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.feature_moments import FeatureMoments
from satstore.analysis.floats import Float64s, Floats
from satstore.analysis.logistic.problem import LogisticProblem

# Of the sample's covariance, the share that is replaced by each feature's own variance, which all rows tell.
SHRINKAGE = 0.1
# Directions of less curvature than this, beside the penalty's, are as well left as they are.
LEAST_CURVATURE = 0.1
# |mean| / std above which features are centred before the product and not after it: below, float32's
# rounding of the raw product is small against the spread, and the copy of each tile is saved.
CENTRE_ABOVE = 32.0


@dataclass(frozen=True, kw_only=True)
class Preconditioner:
    """The map between the solver's variables θ (P, K, F + 1) and weights W (P, K, F) with an offset (P, K).

    The last column of θ is the intercept's, θ' the others:

        W = scale∘(θ' + (θ'·basisᵀ∘gain)·basis), logits = (x − mean)·Wᵀ + intercept_scale · θ[..., F].

    With the losses' curvature h and the features' covariance Σ, the objective's second derivative by each W_j
    is about H = I + C·n·h·Σ. By θ it is about I: curved alike in all directions, those that the data
    determine and those that the penalty does, however many decades lie between. Σ is estimated from a sample
    of rows and shrunk towards the features' variances (Ledoit and Wolf 2004), so that H = D + a few
    directions: D is diagonal and gives the scale, and the others the basis and its gain, from an
    eigendecomposition of the sample's Gram matrix. Likewise intercept_scale = 1/√(C·n·h).

    Attributes
    ----------
    mean
        (P, F), of the features.
    shift
        (P, F), what is taken off the tiles: the mean rounded to float32, or None for nothing.
    scale
        (P, F + 1), the scales of the features, then the intercept's.
    basis
        (P, r, F), orthonormal rows.
    gain
        (P, r), 1/√curvature − 1 along each.
    """

    mean: Float64s
    shift: Float64s | None
    scale: Float64s
    basis: Float64s
    gain: Float64s

    @classmethod
    def estimate(cls, moments: FeatureMoments, sample: Floats, problem: LogisticProblem) -> Self:
        """Estimate the preconditioner from the features' moments and a sample (m, P · F) of the rows."""
        mean, std = (values.reshape(problem.n_positions, -1) for values in moments)
        strength = problem.strength
        # 1. Centre the tiles where float32 would lose digits of the raw products.
        relative = np.abs(mean) * np.sqrt(strength / (1 + strength * std**2))
        shift = mean.astype(np.float32).astype(np.float64) if relative.max() > CENTRE_ABOVE else None
        # 2. Scale each feature by its own variance.
        scale = 1 / np.sqrt(1 + SHRINKAGE * strength * std**2)
        intercept_scale = np.full((len(mean), 1), 1 / np.sqrt(strength))
        # 3. Flatten the directions of high variance that are left.
        spread = sample.reshape(len(sample), *mean.shape).swapaxes(0, 1) - mean[:, None]
        spread *= scale[:, None] * np.sqrt((1 - SHRINKAGE) * strength / max(1, len(sample)))
        curvature, basis = principal_directions(spread)
        gain = 1 / np.sqrt(1 + curvature) - 1
        return cls(mean=mean, shift=shift, scale=np.hstack([scale, intercept_scale]), basis=basis, gain=gain)

    def select(self, positions: NDArray[np.int64]) -> Self:
        """Return the preconditioner of some positions, ascending."""
        if len(positions) == len(self.mean):
            return self
        return type(self)(
            mean=self.mean[positions],
            shift=None if self.shift is None else self.shift[positions],
            scale=self.scale[positions],
            basis=self.basis[positions],
            gain=self.gain[positions],
        )

    @property
    def remainder(self) -> Float64s:
        """The mean of the tiles, (P, F)."""
        return self.mean if self.shift is None else self.mean - self.shift

    def to_model(self, theta: Float64s) -> tuple[Float64s, Float64s]:
        """Return W (P, K, F) and the offset (P, K) that belongs to the tiles, x − shift."""
        weights = self._along_basis(theta[..., :-1])
        weights += theta[..., :-1]
        weights *= self.scale[:, None, :-1]
        offset = theta[..., -1] * self.scale[:, None, -1]
        return weights, offset - np.einsum("pkc,pc->pk", weights, self.remainder)

    def pull_back_gradient(self, weights: Floats, intercept: Float64s) -> Float64s:
        """Turn gradients by W and by the tiles' offset into the gradient by θ, (P, K, F + 1)."""
        gradient = np.empty((*weights.shape[:2], weights.shape[2] + 1))
        np.multiply(intercept[..., None], -self.remainder[:, None], out=gradient[..., :-1])
        gradient[..., :-1] += weights
        gradient[..., -1] = intercept
        gradient *= self.scale[:, None]
        gradient[..., :-1] += self._along_basis(gradient[..., :-1])
        return gradient

    def _along_basis(self, values: Float64s) -> Float64s:
        """Return (values·basisᵀ∘gain)·basis, of values (P, K, F)."""
        along: Float64s = values @ self.basis.swapaxes(1, 2)
        along *= self.gain[:, None]
        return along @ self.basis


def principal_directions(spread: Float64s) -> tuple[Float64s, Float64s]:
    """Return eigenvalues (P, r) and eigenvectors (P, r, F) of spreadᵀ·spread, for spread (P, m, F).

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
