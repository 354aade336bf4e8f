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

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.floats import Floats
from satstore.analysis.logistic import lbfgs
from satstore.analysis.logistic.engine import Engine
from satstore.analysis.logistic.loss import Float64s, LossQuery, LossSums
from satstore.analysis.logistic.preconditioner import Coordinates, Problem

# Corrections that L-BFGS keeps. 20 or 30 save hardly a pass, and each costs 8 bytes per coefficient.
MEMORY = 10


class Precision(NamedTuple):
    """The dtype of products and directions, and what its rounding lets a solver ask for; see lbfgs.Ends."""

    dtype: type[np.floating[Any]]
    rounding: float
    max_trials: int


# Where float32's rounding stops the descent too early for tol, float64 goes on, at twice the time.
PRECISIONS = (
    Precision(np.float32, float(np.finfo(np.float32).eps), 10),
    Precision(np.float64, 64 * float(np.finfo(np.float64).eps), 20),
)


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


def solve(engine: Engine, problem: Problem, n_at_once: int | None = None) -> Solution:
    """Minimise the objective until its gradient is within tol or max_iter is used up.

    Parameters
    ----------
    n_at_once
        How many of the problems to solve at once, where memory holds the vectors of so many; by default all.

    Raises
    ------
    NumericsError
        If rows hold NaN or infinities.
    """
    coordinates = Coordinates.of(engine.moments(), engine.sample(problem.n_sample), problem)
    found = lbfgs.Minimum.starting(np.zeros((problem.n_positions, problem.n_coefficients)))
    n_passes = 0
    for precision in PRECISIONS:
        todo = np.flatnonzero((found.measure > problem.tol) & (found.n_iterations < problem.max_iter))
        size = n_at_once or problem.n_positions
        for part in (todo[first : first + size] for first in range(0, len(todo), size)):
            objective = Objective(engine, problem, coordinates, part, precision.dtype)
            max_iter = problem.max_iter - found.n_iterations[part]
            ends = lbfgs.Ends(problem.tol, max_iter, *precision[1:])
            minimum = lbfgs.minimize(objective, found.point[part], ends, memory=MEMORY, dtype=precision.dtype)
            found.update(part, minimum)
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
