"""Logistic regression out of core: scikit-learn's objective, one pass over the rows per evaluation.

The objective is that of ``sklearn.linear_model.LogisticRegression(C)``::

    ½‖W‖² + C · Σᵢ loss(W xᵢ + b, yᵢ)

with the intercept b free, and it is minimised by L-BFGS. What is new is where the solver works: in
coordinates θ with W = s∘θ about centred features (see Coordinates), in which the objective is curved about
alike in all directions. A change of variables moves no minimum, but spares most of the passes.

Products are float32, by threads that take a tile each; sums over tiles are float64 and in the order of rows.
So the result depends neither on how the rows are stored nor on the number of threads.

The shapes: n rows, F features, k classes, and K outputs: k, or 1 for two classes.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from scipy.optimize import OptimizeResult, minimize

from satstore.analysis.crew import Crew, crew_of_threads
from satstore.analysis.logistic_loss import (
    Codes,
    Float64s,
    Loss,
    LossSums,
    binomial_loss,
    softmax_loss,
    sum_in_order,
    tile_loss_and_gradient,
)
from satstore.analysis.rows import Floats, Moments, Rows, feature_moments, nonfinite_error, tile_height, tiles

# Corrections that L-BFGS keeps. 20 or 30 save hardly a pass, and each costs 16 bytes per coefficient.
MEMORY = 10
# The typical curvature of the losses, as a share of that of probabilities that are all 1/k. It falls while
# classes come apart. Passes to tol 1e-4 at 1, 0.1, 0.05 and 0.03: 31, 14, 16, 19 (random conv features of
# digits) and 148, 130, 123, 108 (1,024 ReLU features, 50 classes); below 0.03 they rise.
CURVATURE = 0.05
# |mean| / std above which features are centred before the product and not after it: below, float32's
# rounding of the raw product is small against the spread, and the copy of each tile is saved.
CENTRE_ABOVE = 32.0


class Precision(NamedTuple):
    """The dtype of the products, and what its rounding lets a solver ask for.

    Attributes
    ----------
    least_gain
        Relative decrease of the objective below which an iteration tells rounding from progress no more.
    max_trials
        Evaluations that one line search may take.
    """

    dtype: type[np.floating[Any]]
    least_gain: float
    max_trials: int


# Where float32's rounding stops the descent too early for tol, float64 goes on, at twice the time.
PRECISIONS = (Precision(np.float32, 1e-10, 10), Precision(np.float64, 64 * np.finfo(np.float64).eps, 20))


@dataclass(frozen=True)
class Coordinates:
    """The solver's coordinates: θ (K, F + 1), of which the last column is the intercept's.

    logits = (x − mean)·(scale∘θ[:, :F]) + scale_b·θ[:, F].

    With the losses' curvature h the objective's second derivative by W_j is about 1 + C·n·h·std_j². With
    scale = 1/√ of that it is about 1 by every θ_j: of features that the data determine and of those that the
    penalty does, however many decades lie between their scales. Likewise scale_b = 1/√(C·n·h).

    Attributes
    ----------
    mean
        (F,), of the features.
    shift
        (F,), what is taken off the tiles: the mean rounded to float32, or None for nothing.
    scale
        (F + 1,), the scales of the features, then the intercept's.
    unit
        The length of θ that is the solver's unit: L-BFGS tries a first step of one unit.
    """

    mean: Float64s
    shift: Float64s | None
    scale: Float64s
    unit: float = 1.0

    @classmethod
    def of(cls, moments: Moments, strength: float) -> Self:
        """Make the coordinates for the features' moments and the strength C·n·h."""
        scale = 1 / np.sqrt(1 + strength * moments.std**2)
        relative = np.abs(moments.mean) * scale * np.sqrt(strength)
        centred = relative.max() > CENTRE_ABOVE
        shift = moments.mean.astype(np.float32).astype(np.float64) if centred else None
        return cls(moments.mean, shift, np.append(scale, 1 / np.sqrt(strength)))

    @property
    def _remainder(self) -> Float64s:
        """The mean of the tiles, (F,)."""
        return self.mean if self.shift is None else self.mean - self.shift

    def model(self, theta: Float64s) -> tuple[Float64s, Float64s]:
        """Return W (K, F) and the offset (K,) that belongs to the tiles, x − shift."""
        scaled = theta * (self.scale * self.unit)
        weights, offset = scaled[:, :-1], scaled[:, -1]
        return weights, offset - weights @ self._remainder

    def pull_back(self, weights: Float64s, intercept: Float64s) -> Float64s:
        """Turn gradients by W and by the tiles' offset into the gradient by θ, (K, F + 1)."""
        centred = weights - np.outer(intercept, self._remainder)
        return np.column_stack([centred, intercept]) * (self.scale * self.unit)


class Point(NamedTuple):
    """An evaluated point: θ, the objective, the mean loss, and the largest gradient entry that tol bounds."""

    theta: Float64s
    objective: float
    mean_loss: float
    gradient: float


class Objective:
    """½‖W‖² + C·Σ loss as a function of θ, ravelled; ``last`` tells of the newest evaluation.

    Parameters
    ----------
    codes
        (n,), the class numbers.
    n_outputs
        K: the number of classes, or 1 for two classes.
    dtype
        Of the products: float32 or float64.
    """

    def __init__(
        self,
        rows: Rows,
        codes: Codes,
        n_outputs: int,
        C: float,
        coordinates: Coordinates,
        dtype: type[np.floating[Any]],
        crew: Crew,
    ) -> None:
        self._rows, self._codes, self._dtype, self._crew = rows, codes, dtype, crew
        self._C = C
        self._shape = (n_outputs, rows.shape[1])
        self.coordinates = coordinates
        self.n_passes = 0
        self.last: Point
        self._at_zero: LossSums | None = None

    def __call__(self, theta: Float64s) -> tuple[float, Float64s]:
        """Return the objective and its gradient by θ, ravelled like θ."""
        weights, offset = self.coordinates.model(theta.reshape(self._shape[0], -1))
        sums = self._sums(weights, offset, bool(theta.any()))
        value = 0.5 * float(np.vdot(weights, weights)) + self._C * sums.loss
        by_weights, by_offset = weights + self._C * sums.weights, self._C * sums.intercept
        by_theta = self.coordinates.pull_back(by_weights, by_offset).ravel()
        if self.coordinates.shift is not None:
            by_weights += np.outer(by_offset, self.coordinates.shift)
        n_rows = len(self._codes)
        largest = float(max(np.abs(by_weights).max(), np.abs(by_offset).max())) / (self._C * n_rows)
        self.last = Point(theta.copy(), value, sums.loss / n_rows, largest)
        return value, by_theta

    def _sums(self, weights: Float64s, offset: Float64s, moved: bool) -> LossSums:
        # The start is asked for twice: for the unit of length, and by the solver.
        if not moved and self._at_zero is not None:
            return self._at_zero
        narrow, narrow_offset = weights.astype(self._dtype), offset.astype(self._dtype)
        loss: Loss = softmax_loss if len(weights) > 1 else binomial_loss
        height = tile_height(self._shape[1], self._shape[0])

        def share(place: slice, tile: Floats) -> LossSums:
            return tile_loss_and_gradient(tile, self._codes[place], narrow, narrow_offset, loss)

        parts = tiles(self._rows, height, self.coordinates.shift, self._dtype, self._crew.reader)
        sums = sum_in_order(self._crew.map(share, parts), self._shape)
        if not np.isfinite(sums.loss):
            raise self._crew.reader.submit(nonfinite_error, self._rows).result()
        self.n_passes += 1
        if not moved:
            self._at_zero = sums
        return sums


class Solution(NamedTuple):
    """Where the solver stopped: W (K, F), b (K,), what it took off the rows (F,), and how it got there."""

    weights: Float64s
    intercept: Float64s
    shift: Float64s | None
    point: Point
    n_iterations: int
    n_passes: int
    converged: bool


def solve(rows: Rows, codes: Codes, n_classes: int, C: float, tol: float, max_iter: int) -> Solution:
    """Minimise the objective by L-BFGS from zero, until its gradient is within tol or max_iter is used up.

    Raises
    ------
    NumericsError
        If rows hold NaN or infinities.
    """
    n_outputs = n_classes if n_classes > 2 else 1
    curvature = CURVATURE * (n_classes - 1) / n_classes**2
    with crew_of_threads() as crew:
        coordinates = Coordinates.of(feature_moments(rows, crew.reader), C * len(codes) * curvature)
        theta = np.zeros(n_outputs * (rows.shape[1] + 1))
        n_iterations = n_passes = 0
        for precision in PRECISIONS:
            objective = Objective(rows, codes, n_outputs, C, coordinates, precision.dtype, crew)
            if not n_iterations:
                # The Newton step of a problem that is curved by 1 / CURVATURE in every coordinate.
                _, gradient = objective(theta)
                unit = CURVATURE * float(np.linalg.norm(gradient)) or 1.0
                coordinates = objective.coordinates = replace(coordinates, unit=unit)
            point, n_steps, stalled = descend(objective, theta, tol, max_iter - n_iterations, precision)
            theta = point.theta
            n_iterations += n_steps
            n_passes += objective.n_passes
            if point.gradient <= tol or n_iterations >= max_iter:
                break
    weights, offset = coordinates.model(point.theta.reshape(n_outputs, -1))
    shift = coordinates.shift
    intercept = offset if shift is None else offset - weights @ shift
    # As scikit-learn has it: a minimum to the last digits of float64 is one, whatever the gradient's scale.
    converged = point.gradient <= tol or (stalled and precision is PRECISIONS[-1])
    return Solution(weights, intercept, shift, point, n_iterations, n_passes, converged)


def descend(
    objective: Objective, theta: Float64s, tol: float, max_iter: int, precision: Precision
) -> tuple[Point, int, bool]:
    """Run L-BFGS from theta.

    Returns
    -------
    tuple
        The last accepted point, the number of iterations, and whether the last of these gained no more than
        the precision's least gain.
    """
    objective(theta)
    accepted = objective.last
    if accepted.gradient <= tol:
        return accepted, 0, False

    # The gradient is judged in the original coordinates, which SciPy doesn't know.
    def accept(intermediate_result: OptimizeResult) -> None:
        nonlocal accepted
        accepted = objective.last
        if accepted.gradient <= tol:
            raise StopIteration

    options = {
        "maxiter": max_iter,
        "maxfun": max_iter * precision.max_trials,
        "maxcor": MEMORY,
        "maxls": precision.max_trials,
        "ftol": precision.least_gain,
        "gtol": 0.0,
    }
    result = minimize(objective, theta, jac=True, method="L-BFGS-B", callback=accept, options=options)
    return accepted, int(result.nit), bool(result.success)
