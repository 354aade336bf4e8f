"""A logistic regression's sizes, and the coordinates in which a solver walks.

The shapes: P problems (1, or one per position of a pixelwise probe), n rows of P · C features, k classes and
K outputs: k, or 1 for two classes.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.rows import Floats, Moments

Float64s = NDArray[np.float64]

# The typical curvature of the losses, as a share of that of probabilities that are all 1/k. It falls while
# classes come apart. Passes to tol 1e-4 at 1, 0.1, 0.05 and 0.03: 31, 14, 16, 19 (random conv features of
# digits) and 148, 130, 123, 108 (1,024 ReLU features, 50 classes); below 0.03 they rise.
CURVATURE = 0.05
# |mean| / std above which features are centred before the product and not after it: below, float32's
# rounding of the raw product is small against the spread, and the copy of each tile is saved.
CENTRE_ABOVE = 32.0


@dataclass(frozen=True)
class Problem:
    """What is to be solved: sizes, the objective's C, and when the solver may stop."""

    n_rows: int
    n_features: int
    n_classes: int
    C: float
    tol: float
    max_iter: int
    n_positions: int = 1

    @property
    def n_outputs(self) -> int:
        """K."""
        return self.n_classes if self.n_classes > 2 else 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(P, K, C + 1), of θ: a row of weights and an intercept per output."""
        return self.n_positions, self.n_outputs, self.n_features // self.n_positions + 1

    @property
    def strength(self) -> float:
        """The losses' typical curvature by logits, summed over rows: C · n · h."""
        return self.C * self.n_rows * CURVATURE * (self.n_classes - 1) / self.n_classes**2


@dataclass(frozen=True)
class Coordinates:
    """The solver's coordinates: θ (P, K, C + 1), of which the last column is the intercept's.

    logits = (x − mean)·(scale∘θ[..., :C]) + scale_b·θ[..., C].

    With the losses' curvature h the objective's second derivative by W_j is about 1 + C·n·h·std_j². With
    scale = 1/√ of that it is about 1 by every θ_j: of features that the data determine and of those that the
    penalty does, however many decades lie between their scales. Likewise scale_b = 1/√(C·n·h).

    Attributes
    ----------
    mean
        (P, C), of the features.
    shift
        (P, C), what is taken off the tiles: the mean rounded to float32, or None for nothing.
    scale
        (P, C + 1), the scales of the features, then the intercept's.
    """

    mean: Float64s
    shift: Float64s | None
    scale: Float64s

    @classmethod
    def of(cls, moments: Moments, problem: Problem) -> Self:
        """Make the coordinates for the features' moments."""
        mean, std = (values.reshape(problem.n_positions, -1) for values in moments)
        scale = 1 / np.sqrt(1 + problem.strength * std**2)
        relative = np.abs(mean) * scale * np.sqrt(problem.strength)
        shift = mean.astype(np.float32).astype(np.float64) if relative.max() > CENTRE_ABOVE else None
        intercept = np.full((len(mean), 1), 1 / np.sqrt(problem.strength))
        return cls(mean, shift, np.hstack([scale, intercept]))

    def at(self, positions: NDArray[np.int64]) -> Self:
        """Return the coordinates of some positions."""
        shift = None if self.shift is None else self.shift[positions]
        return type(self)(self.mean[positions], shift, self.scale[positions])

    @property
    def remainder(self) -> Float64s:
        """The mean of the tiles, (P, C)."""
        return self.mean if self.shift is None else self.mean - self.shift

    def model(self, theta: Float64s) -> tuple[Float64s, Float64s]:
        """Return W (P, K, C) and the offset (P, K) that belongs to the tiles, x − shift."""
        scaled = theta * self.scale[:, None]
        weights, offset = scaled[..., :-1], scaled[..., -1]
        return weights, offset - np.einsum("pkc,pc->pk", weights, self.remainder)

    def pull_back(self, weights: Floats, intercept: Float64s) -> Float64s:
        """Turn gradients by W and by the tiles' offset into the gradient by θ, (P, K, C + 1)."""
        gradient = np.empty((*weights.shape[:2], weights.shape[2] + 1))
        np.multiply(intercept[..., None], -self.remainder[:, None], out=gradient[..., :-1])
        gradient[..., :-1] += weights
        gradient[..., -1] = intercept
        gradient *= self.scale[:, None]
        return gradient
