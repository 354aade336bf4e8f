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

Floats = NDArray[np.floating[Any]]
Float64s = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

# The usual constants of the Wolfe conditions: sufficient decrease, and curvature.
DECREASE, CURVATURE = 1e-4, 0.9
# Near a minimum the measure goes up and down; whoever ends too early starts anew in a better precision.
PATIENCE = 3
_TINY = 1e-30  # a gradient that is zero has no direction


class Evaluation(NamedTuple):
    """Some problems at a point each: values (p,), gradients (p, D), and the measures (p,) that end them."""

    value: Float64s
    gradient: Float64s
    measure: Float64s


Evaluate = Callable[[Float64s, Indices], Evaluation]
"""Evaluates points (p, D), which are those of the problems of these indices (p,), ascending."""


@dataclass(frozen=True)
class Ends:
    """When a problem ends: at this measure or below, or after so many iterations.

    Also after PATIENCE iterations in a row that lower neither the value by more than its rounding, the share
    ``rounding`` of it, nor the least measure so far; and where ``max_trials`` evaluations find no step.
    """

    measure: float
    max_iter: Indices
    rounding: float
    max_trials: int


class Minimum(NamedTuple):
    """Where the problems ended: points (P, D), values, measures, iterations; stalled could go no further."""

    point: Float64s
    value: Float64s
    measure: Float64s
    n_iterations: Indices
    stalled: Mask

    @classmethod
    def starting(cls, point: Float64s) -> Self:
        """Return the state before the first evaluation."""
        n = len(point)
        return cls(
            point, np.full(n, np.inf), np.full(n, np.inf), np.zeros(n, np.int64), np.zeros(n, np.bool_)
        )

    def update(self, index: Indices, other: Self) -> None:
        """Take over where some of the problems went on to."""
        for mine, theirs in (
            (self.point, other.point),
            (self.value, other.value),
            (self.measure, other.measure),
        ):
            mine[index] = theirs
        self.n_iterations[index] += other.n_iterations
        self.stalled[index] = other.stalled


def minimize(
    evaluate: Evaluate,
    start: Float64s,
    ends: Ends,
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
    ends
        When a problem ends.
    memory
        Pairs of vectors that are kept, in ``dtype``; the points are float64.
    """
    n = len(start)
    first = evaluate(start, np.arange(n))
    result = Minimum.starting(start.copy())
    result.value[:], result.measure[:] = first.value, first.measure
    state = _State.at(start, first)
    history = _History(memory, dtype)
    least, n_idle = first.measure.copy(), np.zeros(n, np.int64)
    over = (first.measure <= ends.measure) | (ends.max_iter < 1)
    while True:
        result.point[state.index[over]] = state.point[over]
        if over.all():
            return result
        if over.any():
            state = state.select(~over)
            history.select(~over)
        if (state.n_trials == 0).any():
            state.turn(history.direction(state.gradient))
        trial = state.point + state.step[:, None] * state.direction
        found = evaluate(trial, state.index)
        moved, failed = state.judge(found, ends)
        gains = state.value - found.value > ends.rounding * np.abs(state.value)
        gains |= found.measure < least[state.index]
        least[state.index] = np.where(moved, np.fmin(least[state.index], found.measure), least[state.index])
        n_idle[state.index] = np.where(moved & gains, 0, n_idle[state.index] + moved)
        stalled = failed | (n_idle[state.index] >= PATIENCE)
        if moved.any():
            history.add(state, trial, found.gradient, moved)
            state.move(trial, found, moved)
            result.value[state.index[moved]] = found.value[moved]
            result.measure[state.index[moved]] = found.measure[moved]
            result.n_iterations[state.index] += moved
        done = result.measure[state.index] <= ends.measure
        result.stalled[state.index] = stalled & ~done
        over = done | stalled | (result.n_iterations[state.index] >= ends.max_iter[state.index])


@dataclass
class _State:
    """The problems under way: where each is, where it goes, and between which bounds it looks for a step."""

    index: Indices
    point: Float64s
    value: Float64s
    gradient: Float64s
    direction: Float64s
    step: Float64s
    n_trials: Indices
    slope: Float64s
    low: Float64s
    low_value: Float64s
    low_slope: Float64s
    high: Float64s

    @classmethod
    def at(cls, point: Float64s, found: Evaluation) -> Self:
        n = len(point)
        zeros, counts = [np.zeros(n) for _ in range(6)], np.zeros(n, np.int64)
        return cls(
            np.arange(n), point, found.value, found.gradient, np.zeros((n, 1)), zeros[0], counts, *zeros[1:]
        )

    def select(self, kept: Mask) -> Self:
        return type(self)(*(getattr(self, field.name)[kept] for field in fields(self)))

    def turn(self, direction: Float64s) -> None:
        """Take the direction where a problem has none yet, and try a step of one."""
        new = self.n_trials == 0
        self.direction = _choose(new, direction, self.direction)
        slope = np.vecdot(self.gradient, self.direction)
        self.step = np.where(new, 1.0, self.step)
        self.slope, self.low_slope = np.where(new, slope, self.slope), np.where(new, slope, self.low_slope)
        self.low, self.low_value = np.where(new, 0.0, self.low), np.where(new, self.value, self.low_value)
        self.high = np.where(new, np.inf, self.high)

    def judge(self, found: Evaluation, ends: Ends) -> tuple[Mask, Mask]:
        """Say which problems take their trial, and which find no step; give the others another to try."""
        value, slope = found.value, np.vecdot(found.gradient, self.direction)
        self.n_trials = self.n_trials + 1
        lower = value <= self.value + DECREASE * self.step * self.slope
        # Near the minimum, values differ by their rounding only: slopes still tell where it lies.
        level = value <= self.value + ends.rounding * np.abs(self.value)
        # Not a number is too long a step, too.
        too_long = ~(lower | (level & (slope <= (2 * DECREASE - 1) * self.slope)))
        too_short = ~too_long & (slope < CURVATURE * self.slope)
        last = self.n_trials >= ends.max_trials
        width = self.step - self.low
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            bend = value - self.low_value - self.low_slope * width
            back = np.nan_to_num(-self.low_slope * width / (2 * bend), nan=0.1, posinf=0.5, neginf=0.1)
            ahead = np.nan_to_num(slope / (self.low_slope - slope), nan=4.0, posinf=4.0, neginf=4.0)
        shorter = self.low + width * np.clip(back, 0.1, 0.5)
        reach = np.where(np.isfinite(self.high), (self.high - self.step) / 2, 4 * width)
        longer = self.step + np.minimum(width * np.clip(np.where(ahead > 0, ahead, 4.0), 0.5, 4.0), reach)
        self.high = np.where(too_long, self.step, self.high)
        self.low, self.low_value, self.low_slope = (
            np.where(too_short, new, old)
            for new, old in ((self.step, self.low), (value, self.low_value), (slope, self.low_slope))
        )
        self.step = np.where(too_long, shorter, np.where(too_short, longer, self.step))
        moved = ~too_long & ~too_short | (too_short & last)
        return moved, too_long & last

    def move(self, trial: Float64s, found: Evaluation, moved: Mask) -> None:
        """Go where the trial was good."""
        self.point = _choose(moved, trial, self.point)
        self.gradient = _choose(moved, found.gradient, self.gradient)
        self.value = np.where(moved, found.value, self.value)
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
        """Return −H·gradient, (p, D)."""
        q = -gradient.astype(self._dtype)
        scratch, weights = np.empty_like(q), []
        for s, y, inverse in reversed(self._pairs):
            weights.append(inverse * np.vecdot(s, q))
            q -= np.multiply(y, weights[-1][:, None], out=scratch)
        scale = np.full(len(q), np.nan, self._dtype) if self._scale is None else self._scale
        # The first step of all has length 1: what it finds tells how far the next may go.
        q *= np.where(np.isnan(scale), 1 / np.maximum(np.linalg.norm(q, axis=1), _TINY), scale)[:, None]
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
