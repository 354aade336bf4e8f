"""Logistic regression out of core: scikit-learn's objective, one pass over the rows per evaluation.

The objective is that of ``sklearn.linear_model.LogisticRegression(C)``::

    ½‖W‖² + C · Σᵢ loss(W xᵢ + b, yᵢ)

with the intercept b free, and it is minimised by L-BFGS. What is new are the variables θ that the solver
works in (see :class:`.Preconditioner`), in which the objective is curved about alike in all directions. A
change of variables moves no minimum, but spares most of the passes.

Products are float32; sums over tiles are float64 and in the order of rows (see engine). So the result depends
neither on how the rows are stored nor on the number of threads. Shapes as in :mod:`.problem`.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.floats import Float64s, Floats
from satstore.analysis.logistic.engine import Engine
from satstore.analysis.logistic.lbfgs import Minimum, StoppingCriteria, ValueAndGradient, minimize
from satstore.analysis.logistic.loss import LossQuery, LossSums
from satstore.analysis.logistic.preconditioner import Preconditioner
from satstore.analysis.logistic.problem import LogisticProblem

# Corrections that L-BFGS keeps. 20 or 30 save hardly a pass, and each costs 8 bytes per coefficient.
MEMORY = 10


class WorkingPrecision(NamedTuple):
    """The dtype of products and directions, and how its rounding stops a solver; see StoppingCriteria."""

    dtype: type[np.floating[Any]]
    rounding: float
    max_trials: int


# Where float32's rounding stops the descent too early for tol, float64 goes on, at twice the time.
WORKING_PRECISIONS = (
    WorkingPrecision(np.float32, rounding=float(np.finfo(np.float32).eps), max_trials=10),
    WorkingPrecision(np.float64, rounding=64 * float(np.finfo(np.float64).eps), max_trials=20),
)


class Solution(NamedTuple):
    """Where the solver stopped, of each of P problems, and how it got there.

    Attributes
    ----------
    weights, intercept
        W (P, K, F) and b (P, K).
    shift
        (P, F), what was taken off the rows; None for nothing.
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
        """Return weights (P, K, F), and offset (P, K) and shift (P · F,), or None, of rows less the shift."""
        if self.shift is None:
            return self.weights.astype(dtype), self.intercept.astype(dtype), None
        offset = self.intercept + np.einsum("pkc,pc->pk", self.weights, self.shift)
        return self.weights.astype(dtype), offset.astype(dtype), self.shift.ravel()


def solve(engine: Engine, problem: LogisticProblem, n_at_once: int | None = None) -> Solution:
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
    # 1. Estimate the preconditioner: one pass for the moments, if they aren't known, and one for a sample.
    moments, sample = engine.moments(), engine.sample(problem.n_sample)
    preconditioner = Preconditioner.estimate(moments, sample, problem)
    minimum = Minimum.before_start(np.zeros((problem.n_positions, problem.n_coefficients)))
    n_passes, n_at_once = 0, n_at_once or problem.n_positions
    for precision in WORKING_PRECISIONS:
        # 2. Minimise what is not within tol yet, as many positions at once as may be.
        todo = np.flatnonzero((minimum.optimality > problem.tol) & (minimum.n_iterations < problem.max_iter))
        for first in range(0, len(todo), n_at_once):
            positions = todo[first : first + n_at_once]
            objective = Objective(engine, problem, preconditioner, positions=positions, dtype=precision.dtype)
            stopping = StoppingCriteria(
                tol=problem.tol,
                max_iter=problem.max_iter - minimum.n_iterations[positions],
                rounding=precision.rounding,
                max_trials=precision.max_trials,
            )
            start = minimum.point[positions]
            later = minimize(objective, start, stopping, memory=MEMORY, dtype=precision.dtype)
            minimum.update(positions, later)
            n_passes += objective.n_passes
        # 3. As scikit-learn has it: a minimum to float64's last digits is one, whatever the gradient's scale.
        minimum.stalled[:] &= precision is WORKING_PRECISIONS[-1]
    return _make_solution(minimum, problem, preconditioner, n_passes)


def _make_solution(
    minimum: Minimum, problem: LogisticProblem, preconditioner: Preconditioner, n_passes: int
) -> Solution:
    """Turn the minimum in θ into weights and intercepts of the rows as they are stored."""
    weights, offset = preconditioner.to_model(minimum.point.reshape(problem.shape))
    shift = preconditioner.shift
    losses = minimum.value - 0.5 * np.square(weights).sum(axis=(1, 2))
    return Solution(
        weights=weights,
        intercept=offset if shift is None else offset - np.einsum("pkc,pc->pk", weights, shift),
        shift=shift,
        objective=minimum.value,
        mean_loss=losses / (problem.C * problem.n_rows),
        gradient=minimum.optimality,
        n_iterations=minimum.n_iterations,
        converged=(minimum.optimality <= problem.tol) | minimum.stalled,
        n_passes=n_passes,
    )


class Objective:
    """½‖W‖² + C·Σ loss of some positions, as a function of their θ, each ravelled.

    Parameters
    ----------
    positions
        (p,): the problems that are meant by the indices from 0 to p − 1.
    """

    def __init__(
        self,
        engine: Engine,
        problem: LogisticProblem,
        preconditioner: Preconditioner,
        *,
        positions: NDArray[np.int64],
        dtype: type[np.floating[Any]],
    ) -> None:
        self._engine, self._problem, self._preconditioner = engine, problem, preconditioner
        self._positions, self._dtype = positions, dtype
        self.n_passes = 0

    def __call__(self, theta: Float64s, index: NDArray[np.int64]) -> ValueAndGradient:
        """Evaluate points (q, K · (F + 1)) of q of the positions, in one pass."""
        problem, positions = self._problem, self._positions[index]
        # 1. Sum the losses and their gradients over the rows.
        preconditioner = self._preconditioner.select(positions)
        weights, offset = preconditioner.to_model(theta.reshape(len(index), *problem.shape[1:]))
        sums = self._sum_losses(weights, offset, positions)
        # 2. Add the penalty.
        value = 0.5 * np.einsum("pkc,pkc->p", weights, weights) + problem.C * sums.loss
        by_weights, by_offset = sums.weights, problem.C * sums.intercept
        by_weights *= problem.C
        by_weights += weights
        gradient = preconditioner.pull_back_gradient(by_weights, by_offset)
        # 3. Measure the gradient as scikit-learn does, by the weights of the rows as they are stored.
        if preconditioner.shift is not None:
            by_weights += by_offset[..., None] * preconditioner.shift[:, None]
        largest = np.maximum(np.abs(by_weights).max(axis=(1, 2)), np.abs(by_offset).max(axis=1))
        optimality = largest / (problem.C * problem.n_rows)
        return ValueAndGradient(value, gradient.reshape(len(index), -1), optimality)

    def _sum_losses(self, weights: Float64s, offset: Float64s, positions: NDArray[np.int64]) -> LossSums:
        self.n_passes += 1
        shift = self._preconditioner.shift
        query = LossQuery(
            weights.astype(self._dtype),
            offset.astype(self._dtype),
            None if shift is None else shift.ravel(),
            None if len(positions) == self._problem.n_positions else positions,
        )
        return self._engine.sums(query)
