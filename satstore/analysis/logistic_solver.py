"""Logistic regression out of core: scikit-learn's objective, one pass over the rows per evaluation.

The objective is that of ``sklearn.linear_model.LogisticRegression(C)``::

    ½‖W‖² + C · Σᵢ loss(W xᵢ + b, yᵢ)

with the intercept b free, and it is minimised by L-BFGS. What is new is where the solver works: in
coordinates θ with W = s∘θ about centred features (see Coordinates), in which the objective is curved about
alike in all directions. A change of variables moves no minimum, but spares most of the passes.

Products are float32; sums over tiles are float64 and in the order of rows (see engine). So the result depends
neither on how the rows are stored nor on the number of threads.

The shapes are those of logistic_loss: P problems (1, or one per position of a pixelwise probe), n rows of
P · C features, k classes and K outputs: k, or 1 for two classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from satstore.analysis import lbfgs
from satstore.analysis.engine import Engine
from satstore.analysis.logistic_loss import Float64s, LossQuery, LossSums
from satstore.analysis.rows import Floats, Moments

# Corrections that L-BFGS keeps. 20 or 30 save hardly a pass, and each costs 8 bytes per coefficient.
MEMORY = 10
# The typical curvature of the losses, as a share of that of probabilities that are all 1/k. It falls while
# classes come apart. Passes to tol 1e-4 at 1, 0.1, 0.05 and 0.03: 31, 14, 16, 19 (random conv features of
# digits) and 148, 130, 123, 108 (1,024 ReLU features, 50 classes); below 0.03 they rise.
CURVATURE = 0.05
# |mean| / std above which features are centred before the product and not after it: below, float32's
# rounding of the raw product is small against the spread, and the copy of each tile is saved.
CENTRE_ABOVE = 32.0


class Precision(NamedTuple):
    """The dtype of products and directions, and what its rounding lets a solver ask for; see lbfgs.Ends."""

    dtype: type[np.floating[Any]]
    least_gain: float
    max_trials: int


# Where float32's rounding stops the descent too early for tol, float64 goes on, at twice the time.
PRECISIONS = (Precision(np.float32, 1e-10, 10), Precision(np.float64, 64 * np.finfo(np.float64).eps, 20))


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


class Solution(NamedTuple):
    """Where the solver stopped, of each of P problems, and how it got there.

    Attributes
    ----------
    weights, intercept
        W (P, K, C) and b (P, K).
    shift
        (P, C), what was taken off the rows.
    objective, mean_loss, gradient
        (P,): the objective, the mean loss in nats, and the largest gradient entry that tol bounds.
    n_iterations, converged
        (P,).
    n_passes
        Passes over the rows that evaluated the objective.
    """

    weights: Float64s
    intercept: Float64s
    shift: Float64s | None
    objective: Float64s
    mean_loss: Float64s
    gradient: Float64s
    n_iterations: NDArray[np.int64]
    converged: NDArray[np.bool_]
    n_passes: int

    def model(self, dtype: Any) -> tuple[Floats, Floats, Float64s | None]:
        """Return weights (P, K, C), and offset (P, K) and shift (P · C,), or None, of rows less the shift."""
        if self.shift is None:
            return self.weights.astype(dtype), self.intercept.astype(dtype), None
        offset = self.intercept + np.einsum("pkc,pc->pk", self.weights, self.shift)
        return self.weights.astype(dtype), offset.astype(dtype), self.shift.ravel()


Start = Callable[[Coordinates], Float64s]
"""Gives a θ (P, K, C + 1) to start from."""


def solve(engine: Engine, problem: Problem, start: Start | None = None) -> Solution:
    """Minimise the objective until its gradient is within tol or max_iter is used up, from zero by default.

    Raises
    ------
    NumericsError
        If rows hold NaN or infinities.
    """
    coordinates = Coordinates.of(engine.moments(), problem)
    p, k, _ = problem.shape
    theta = np.zeros((p, k * problem.shape[2])) if start is None else start(coordinates).reshape(p, -1)
    found = lbfgs.Minimum.starting(theta)
    n_passes = 0
    for precision in PRECISIONS:
        todo = np.flatnonzero((found.measure > problem.tol) & (found.n_iterations < problem.max_iter))
        if not len(todo):
            break
        objective = Objective(engine, problem, coordinates, todo, precision.dtype)
        ends = lbfgs.Ends(
            problem.tol,
            problem.max_iter - found.n_iterations[todo],
            precision.least_gain,
            precision.max_trials,
        )
        found.update(
            todo,
            lbfgs.minimize(
                objective,
                found.point[todo],
                ends,
                memory=MEMORY,
                dtype=precision.dtype,
                # The Newton step of a problem that is curved by 1 / CURVATURE in every coordinate.
                first_scale=CURVATURE,
            ),
        )
        n_passes += objective.n_passes
        # As scikit-learn has it: a minimum to float64's last digits is one, whatever the gradient's scale.
        found.stalled[:] &= precision is PRECISIONS[-1]
    weights, offset = coordinates.model(found.point.reshape(problem.shape))
    shift = coordinates.shift
    intercept = offset if shift is None else offset - np.einsum("pkc,pc->pk", weights, shift)
    losses = (found.value - 0.5 * np.square(weights).sum(axis=(1, 2))) / (problem.C * problem.n_rows)
    converged = (found.measure <= problem.tol) | found.stalled
    return Solution(
        weights,
        intercept,
        shift,
        found.value,
        losses,
        found.measure,
        found.n_iterations,
        converged,
        n_passes,
    )


class Objective:
    """½‖W‖² + C·Σ loss of some positions, as a function of their θ, each ravelled.

    Parameters
    ----------
    positions
        (p,): the problems that are meant by the indices from 0 to p − 1.
    dtype
        Of the products: float32 or float64.
    """

    def __init__(
        self,
        engine: Engine,
        problem: Problem,
        coordinates: Coordinates,
        positions: NDArray[np.int64],
        dtype: type[np.floating[Any]],
    ) -> None:
        self._engine, self._problem, self._coordinates = engine, problem, coordinates
        self._positions, self._dtype = positions, dtype
        self.n_passes = 0

    def __call__(self, theta: Float64s, index: NDArray[np.int64]) -> lbfgs.Evaluation:
        """Evaluate points (q, K · (C + 1)) of q of the positions, in one pass."""
        problem, positions = self._problem, self._positions[index]
        coordinates = self._coordinates.at(positions)
        weights, offset = coordinates.model(theta.reshape(len(index), *problem.shape[1:]))
        sums = self._sums(weights, offset, positions)
        value = 0.5 * np.einsum("pkc,pkc->p", weights, weights) + problem.C * sums.loss
        by_weights, by_offset = sums.weights, problem.C * sums.intercept
        by_weights *= problem.C
        by_weights += weights
        by_theta = coordinates.pull_back(by_weights, by_offset)
        if coordinates.shift is not None:
            by_weights += by_offset[..., None] * coordinates.shift[:, None]
        largest = np.maximum(np.abs(by_weights).max(axis=(1, 2)), np.abs(by_offset).max(axis=1))
        measure = largest / (problem.C * problem.n_rows)
        return lbfgs.Evaluation(value, by_theta.reshape(len(index), -1), measure)

    def _sums(self, weights: Float64s, offset: Float64s, positions: NDArray[np.int64]) -> LossSums:
        self.n_passes += 1
        shift = self._coordinates.shift
        query = LossQuery(
            weights.astype(self._dtype),
            offset.astype(self._dtype),
            None if shift is None else shift.ravel(),
            None if len(positions) == self._problem.n_positions else positions,
        )
        return self._engine.sums(query)
