"""L-BFGS for many problems side by side, each with a history, a step and an end of its own.

One evaluation serves all problems that are still under way: where it is a pass over the rows, all positions
of a layer are fitted in about as many passes as the slowest of them needs. P problems of D variables each.

The directions are those of Nocedal (1980). Steps meet the weak Wolfe conditions, or, where rounding hides a
decrease, their approximation by Hager and Zhang (2005), which asks of slopes what of values can't be told.
Between the bounds of Lewis and Overton (2013), interpolation says what to try next.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.floats import Float64s, Floats

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

# The usual constants of the Wolfe conditions: c₁ of sufficient decrease, and c₂ of curvature.
WOLFE_DECREASE, WOLFE_CURVATURE = 1e-4, 0.9
# Near a minimum the optimality goes up and down; a caller can go on in a better precision from where it ends.
PATIENCE = 3
_TINY = 1e-30  # a gradient that is zero has no direction


class ValueAndGradient(NamedTuple):
    """The objectives (p,) of p problems at a point each, and their gradients (p, D).

    Attributes
    ----------
    optimality
        (p,), how far each is from a minimum, such as its largest gradient entry: what the solver ends by.
    """

    value: Float64s
    gradient: Float64s
    optimality: Float64s


Evaluate = Callable[[Float64s, Indices], ValueAndGradient]
"""Evaluates points (p, D), which are those of the problems of these indices (p,), ascending."""


@dataclass(frozen=True, kw_only=True)
class StoppingCriteria:
    """When a problem ends.

    Also after PATIENCE iterations in a row that lower neither the value by more than its rounding nor the
    least optimality so far.

    Attributes
    ----------
    tol
        It ends at this optimality or below.
    max_iter
        (P,), it ends after so many iterations.
    rounding
        The share of a value that its rounding errors may be.
    max_trials
        It ends where so many evaluations find no step.
    """

    tol: float
    max_iter: Indices
    rounding: float
    max_trials: int


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """Where the P problems ended: points (P, D), all else (P,).

    Attributes
    ----------
    stalled
        Whether a problem could go no further.
    """

    point: Float64s
    value: Float64s
    optimality: Float64s
    n_iterations: Indices
    stalled: Mask

    @classmethod
    def before_start(cls, point: Float64s) -> Self:
        """Return the state before the first evaluation, at points that it takes over."""
        n = len(point)
        return cls(
            point=point,
            value=np.full(n, np.inf),
            optimality=np.full(n, np.inf),
            n_iterations=np.zeros(n, np.int64),
            stalled=np.zeros(n, np.bool_),
        )

    def update(self, index: Indices, later: Self) -> None:
        """Take over where some of the problems went on to from here."""
        self.point[index] = later.point
        self.value[index] = later.value
        self.optimality[index] = later.optimality
        self.n_iterations[index] += later.n_iterations
        self.stalled[index] = later.stalled


def minimize(
    evaluate: Evaluate,
    start: Float64s,
    stopping: StoppingCriteria,
    *,
    memory: int,
    dtype: type[np.floating[Any]],
) -> Minimum:
    """Minimise P functions of D variables.

    A problem's first step has length 1, so give it variables in which that is short but not tiny.

    Parameters
    ----------
    evaluate
        Called with the points of the problems that are under way.
    start
        (P, D).
    memory
        Pairs of vectors that are kept, in ``dtype``; the points are float64.
    """
    result = Minimum.before_start(start.copy())
    # 1. Evaluate all starts.
    state = _State.at_start(start, evaluate(start, np.arange(len(start))))
    history = _History(memory, dtype)
    without_step = np.zeros(len(start), np.bool_)
    while True:
        # 2. Keep the results of problems that end, and go on with the others.
        ended, stalled = state.find_ended(stopping, without_step)
        state.write_to(result, ended, stalled)
        if ended.all():
            return result
        if ended.any():
            state = state.select(~ended)
            history.select(~ended)
        # 3. Give a direction to those that have just moved.
        if (state.n_trials == 0).any():
            state.set_directions(history.direction(state.gradient))
        # 4. Evaluate a trial point of each, in one call.
        trial = state.point + state.step[:, None] * state.direction
        found = evaluate(trial, state.index)
        # 5. Judge the trials; those that fail get another step to try.
        moved, without_step = state.search(found, stopping)
        # 6. Move, and learn the curvature from it.
        if moved.any():
            history.add(state, trial, found.gradient, moved)
            state.move(trial, found, moved, stopping.rounding)


@dataclass(kw_only=True)
class _State:
    """The p problems under way.

    Attributes
    ----------
    index
        (p,), the number of each among all P.
    point, value, gradient, optimality
        Where each is.
    n_iterations, least, n_idle
        (p,): its moves, the least optimality so far, and the moves in a row that gained nothing.
    direction, slope
        Where it goes, (p, D), and the derivative along that, (p,).
    step, n_trials
        (p,): the step to try, and how many were tried.
    low, low_value, low_slope, high
        (p,): the bounds that the step lies between.
    """

    index: Indices
    point: Float64s
    value: Float64s
    gradient: Float64s
    optimality: Float64s
    n_iterations: Indices
    least: Float64s
    n_idle: Indices
    direction: Float64s
    slope: Float64s
    step: Float64s
    n_trials: Indices
    low: Float64s
    low_value: Float64s
    low_slope: Float64s
    high: Float64s

    @classmethod
    def at_start(cls, point: Float64s, found: ValueAndGradient) -> Self:
        zeros, counts = np.zeros(len(point)), np.zeros(len(point), np.int64)  # no method writes into them
        return cls(
            index=np.arange(len(point)),
            point=point,
            value=found.value,
            gradient=found.gradient,
            optimality=found.optimality,
            n_iterations=counts,
            least=found.optimality,
            n_idle=counts,
            direction=np.zeros((len(point), 1)),
            slope=zeros,
            step=zeros,
            n_trials=counts,
            low=zeros,
            low_value=zeros,
            low_slope=zeros,
            high=zeros,
        )

    def select(self, kept: Mask) -> Self:
        return type(self)(**{field.name: getattr(self, field.name)[kept] for field in fields(self)})

    def find_ended(self, stopping: StoppingCriteria, without_step: Mask) -> tuple[Mask, Mask]:
        """Return which problems end, and which of them stall: end before they are within tol."""
        within_tol = self.optimality <= stopping.tol
        stalled = ~within_tol & (without_step | (self.n_idle >= PATIENCE))
        return within_tol | stalled | (self.n_iterations >= stopping.max_iter[self.index]), stalled

    def write_to(self, result: Minimum, ended: Mask, stalled: Mask) -> None:
        """Write where the problems are that end."""
        index = self.index[ended]
        result.point[index] = self.point[ended]
        result.value[index] = self.value[ended]
        result.optimality[index] = self.optimality[ended]
        result.n_iterations[index] = self.n_iterations[ended]
        result.stalled[index] = stalled[ended]

    def set_directions(self, direction: Float64s) -> None:
        """Take the direction where a problem has none yet, and try a step of one."""
        new = self.n_trials == 0
        self.direction = _choose(new, direction, self.direction)
        slope = np.vecdot(self.gradient, self.direction)
        self.step = np.where(new, 1.0, self.step)
        self.slope, self.low_slope = np.where(new, slope, self.slope), np.where(new, slope, self.low_slope)
        self.low, self.low_value = np.where(new, 0.0, self.low), np.where(new, self.value, self.low_value)
        self.high = np.where(new, np.inf, self.high)

    def search(self, found: ValueAndGradient, stopping: StoppingCriteria) -> tuple[Mask, Mask]:
        """Return which problems take their trial, and which find no step; give the others another to try."""
        value, slope = found.value, np.vecdot(found.gradient, self.direction)
        self.n_trials = self.n_trials + 1
        # 1. Check the decrease. Near the minimum, values differ by their rounding only: slopes still tell
        # where it lies. Not a number is too long a step, too.
        lower = value <= self.value + WOLFE_DECREASE * self.step * self.slope
        level = value <= self.value + stopping.rounding * np.abs(self.value)
        too_long = ~(lower | (level & (slope <= (2 * WOLFE_DECREASE - 1) * self.slope)))
        # 2. Check the curvature.
        too_short = ~too_long & (slope < WOLFE_CURVATURE * self.slope)
        # 3. Narrow the bounds, and choose a step between them.
        shorter, longer = self._propose_steps(value, slope)
        self.high = np.where(too_long, self.step, self.high)
        self.low = np.where(too_short, self.step, self.low)
        self.low_value = np.where(too_short, value, self.low_value)
        self.low_slope = np.where(too_short, slope, self.low_slope)
        self.step = np.where(too_long, shorter, np.where(too_short, longer, self.step))
        # 4. After the last trial, a step that is too short will do.
        last = self.n_trials >= stopping.max_trials
        return ~too_long & (~too_short | last), too_long & last

    def _propose_steps(self, value: Float64s, slope: Float64s) -> tuple[Float64s, Float64s]:
        """Interpolate, from the low bound and a trial's value and slope, a shorter step and a longer one."""
        width = self.step - self.low
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            bend = value - self.low_value - self.low_slope * width
            back = np.nan_to_num(-self.low_slope * width / (2 * bend), nan=0.1, posinf=0.5, neginf=0.1)
            ahead = np.nan_to_num(slope / (self.low_slope - slope), nan=4.0, posinf=4.0, neginf=4.0)
        shorter = self.low + width * np.clip(back, 0.1, 0.5)
        reach = np.where(np.isfinite(self.high), (self.high - self.step) / 2, 4 * width)
        longer = self.step + np.minimum(width * np.clip(np.where(ahead > 0, ahead, 4.0), 0.5, 4.0), reach)
        return shorter, longer

    def move(self, trial: Float64s, found: ValueAndGradient, moved: Mask, rounding: float) -> None:
        """Go to the trial where it was taken, and note whether that gained anything."""
        gains = self.value - found.value > rounding * np.abs(self.value)
        gains |= found.optimality < self.least
        self.n_idle = np.where(moved & gains, 0, self.n_idle + moved)
        self.least = np.where(moved, np.fmin(self.least, found.optimality), self.least)
        self.point = _choose(moved, trial, self.point)
        self.gradient = _choose(moved, found.gradient, self.gradient)
        self.value = np.where(moved, found.value, self.value)
        self.optimality = np.where(moved, found.optimality, self.optimality)
        self.n_iterations = self.n_iterations + moved
        self.n_trials = np.where(moved, 0, self.n_trials)


class _History:
    """The last steps and changes of the gradient, in the dtype of the directions."""

    def __init__(self, length: int, dtype: type[np.floating[Any]]) -> None:
        self._pairs: deque[tuple[Floats, Floats, Floats]] = deque(maxlen=length)
        self._dtype = dtype
        self._scale: Floats | None = None  # NaN of problems that have made no step yet

    def add(self, state: _State, point: Float64s, gradient: Float64s, moved: Mask) -> None:
        """Take in the move of those problems that move."""
        s, y = (
            (new - old).astype(self._dtype) for new, old in ((point, state.point), (gradient, state.gradient))
        )
        products, squares = np.vecdot(s, y), np.vecdot(y, y)
        used = moved & (products > 0)  # not positive where the step is too short for the precision
        # A pair whose inverse is 0 is without effect.
        inverse = np.divide(1, products, out=np.zeros_like(products), where=used)
        scale = np.full_like(products, np.nan) if self._scale is None else self._scale
        self._scale = np.divide(products, squares, out=scale, where=used)
        self._pairs.append((s, y, inverse))

    def direction(self, gradient: Float64s) -> Float64s:
        """Return −H·gradient, (p, D), by the two-loop recursion of Nocedal (1980)."""
        # 1. From the newest pair to the oldest.
        q = -gradient.astype(self._dtype)
        scratch, weights = np.empty_like(q), []
        for s, y, inverse in reversed(self._pairs):
            weights.append(inverse * np.vecdot(s, q))
            q -= np.multiply(y, weights[-1][:, None], out=scratch)
        # 2. Scale. The first step of all has length 1: what it finds tells how far the next may go.
        scale = np.full(len(q), np.nan, self._dtype) if self._scale is None else self._scale
        q *= np.where(np.isnan(scale), 1 / np.maximum(np.linalg.norm(q, axis=1), _TINY), scale)[:, None]
        # 3. From the oldest pair to the newest.
        for (s, y, inverse), weight in zip(self._pairs, reversed(weights), strict=True):
            weight -= inverse * np.vecdot(y, q)
            q += np.multiply(s, weight[:, None], out=scratch)
        return q.astype(np.float64)

    def select(self, kept: Mask) -> None:
        pairs = [(s[kept], y[kept], inverse[kept]) for s, y, inverse in self._pairs]
        self._pairs = deque(pairs, maxlen=self._pairs.maxlen)
        self._scale = None if self._scale is None else self._scale[kept]


def _choose(mask: Mask, new: Float64s, old: Float64s) -> Float64s:
    """Return np.where(mask, new, old) row by row, without a copy where all rows are new."""
    return new if mask.all() else np.where(mask[:, None], new, old)
