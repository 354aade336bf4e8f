"""A start for the solver: some epochs of Adam on a sample of the rows that fits in memory.

It spares L-BFGS its first passes, which go down from chance. What it gives depends on the rows and the
problem alone: neither on how rows are stored nor on the number of threads.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.coordinates import Coordinates, Problem
from satstore.analysis.crew import Crew
from satstore.analysis.logistic_loss import Codes, Float64s, LossQuery
from satstore.analysis.rows import BlockRows, Floats, Rows, tile_height, widen

Float32s = NDArray[np.float32]

# Rows of the sample at most, times features: 160 MiB of float16.
SAMPLE_VALUES = 80 * 2**20
# Epochs cost about two passes over all rows, within these bounds: the larger the sample's share, the fewer.
MIN_EPOCHS, MAX_EPOCHS = 3, 10
BATCH = 512
# A batch is cut into as many parts, and a step into as many blocks, which threads share.
PARTS, BLOCKS = 4, 16
# With fewer batches than these Adam gets nowhere, and L-BFGS has little to do.
MIN_BATCHES = 24
RATE = 3e-3
# Adam's own constants (Kingma and Ba 2015).
DECAY, DECAY_OF_SQUARES, EPSILON = 0.9, 0.999, 1e-12


def is_worthwhile(problem: Problem) -> bool:
    """Tell whether a problem has rows enough for a start of this kind, and one position only."""
    return problem.n_positions == 1 and sample_size(problem) >= MIN_BATCHES * BATCH


def sample_size(problem: Problem) -> int:
    """Return the number of rows in the sample."""
    return min(problem.n_rows, SAMPLE_VALUES // problem.n_features)


def start_at(rows: Rows, codes: Codes, problem: Problem, coordinates: Coordinates, crew: Crew) -> Float64s:
    """Return where to start, θ (P, K, C + 1): a warm start where that is worthwhile, else zero."""
    if not is_worthwhile(problem):
        return np.zeros(problem.shape)
    return warm_start(rows, codes, problem, coordinates, crew)


def n_epochs(problem: Problem) -> int:
    """Return the number of epochs over the sample."""
    return min(MAX_EPOCHS, max(MIN_EPOCHS, 2 * problem.n_rows // sample_size(problem)))


def warm_start(rows: Rows, codes: Codes, problem: Problem, coordinates: Coordinates, crew: Crew) -> Float64s:
    """Return θ (1, K, C + 1) after some epochs over a sample."""
    sample, sample_codes = take_sample(rows, codes, problem, crew)
    n = len(sample)
    random = np.random.default_rng(0)
    model = _Adam(problem, coordinates, n_steps=n_epochs(problem) * (n // BATCH))
    for _ in range(n_epochs(problem)):
        order = random.permutation(n)
        for batch in np.split(order[: n - n % BATCH], n // BATCH):
            query = model.query()

            def share(part: NDArray[np.int64], query: LossQuery = query) -> tuple[Floats, Float64s]:
                tile = np.empty((len(part), problem.n_features), np.float32)
                widen(sample[part], tile)
                if coordinates.shift is not None:
                    tile -= coordinates.shift[0].astype(np.float32)
                found = query.share(tile, sample_codes[part])
                return found.weights[0], found.intercept[0]

            parts = list(crew.map(share, ((part,) for part in np.split(batch, PARTS))))
            model.step(parts, crew)
    return model.theta()


def take_sample(rows: Rows, codes: Codes, problem: Problem, crew: Crew) -> tuple[Floats, Codes]:
    """Return rows evenly spaced over all, in the dtype that they are stored in, and their codes."""
    size = sample_size(problem)
    chosen = np.arange(size) * problem.n_rows // size
    read = rows.read_stored if isinstance(rows, BlockRows) else rows.read
    sample: Floats | None = None
    height = tile_height(problem.n_features, problem.n_outputs)
    for start in range(0, problem.n_rows, height):
        stop = min(start + height, problem.n_rows)
        tile = crew.reader.submit(read, start, stop).result()
        first, last = np.searchsorted(chosen, (start, stop))
        if sample is None:
            sample = np.empty((size, problem.n_features), tile.dtype)
        sample[first:last] = tile[chosen[first:last] - start]
    assert sample is not None
    return sample, codes[chosen]


class _Adam:
    """The state of Adam: weights (K, C) and intercept (K,), float32.

    Its rate is the same for all standardised features: it goes by their scale for the features as they are.
    """

    def __init__(self, problem: Problem, coordinates: Coordinates, n_steps: int) -> None:
        _, k, width = problem.shape
        self._coordinates, self._n_steps, self._n_done = coordinates, n_steps, 0
        self._decay = np.float32(1 / (problem.C * problem.n_rows))  # of the penalty, by mean loss
        rates = (np.sqrt(problem.strength) * coordinates.scale[0]).astype(np.float32)
        self._rates, self._intercept_rate = rates[:-1], rates[-1]
        self._remainder = coordinates.remainder[0].astype(np.float32)
        # The model, and the means of its gradient and of the gradient's square.
        self._weights = [np.zeros((k, width - 1), np.float32) for _ in range(3)]
        self._intercept = [np.zeros(k, np.float32) for _ in range(3)]

    def query(self) -> LossQuery:
        """Return what asks for the gradient at the model."""
        weights = self._weights[0]
        return LossQuery(weights[None], (self._intercept[0] - weights @ self._remainder)[None])

    def step(self, parts: list[tuple[Floats, Float64s]], crew: Crew) -> None:
        """Take a step by the sums that the parts of a batch gave."""
        self._n_done += 1
        rate = RATE * 0.5 * (1 + np.cos(np.pi * self._n_done / self._n_steps))
        rate *= np.sqrt(1 - DECAY_OF_SQUARES**self._n_done) / (1 - DECAY**self._n_done)
        residuals = np.sum([intercept for _, intercept in parts], axis=0).astype(np.float32) / BATCH
        k = len(residuals)
        edges = [k * i // BLOCKS for i in range(BLOCKS + 1)]
        blocks = ((slice(*pair), parts, residuals, rate) for pair in pairwise(edges) if pair[0] < pair[1])
        for _ in crew.map(self._step_block, blocks):
            pass
        model, mean, square = self._intercept
        _move(model, mean, square, residuals.copy(), self._intercept_rate * np.float32(rate))

    def _step_block(
        self, block: slice, parts: list[tuple[Floats, Float64s]], residuals: Float32s, rate: float
    ) -> None:
        model, mean, square = (array[block] for array in self._weights)
        gradient = parts[0][0][block]
        for weights, _ in parts[1:]:
            gradient += weights[block]
        gradient *= np.float32(1 / BATCH)
        gradient -= residuals[block, None] * self._remainder
        gradient += self._decay * model
        _move(model, mean, square, gradient, self._rates * np.float32(rate))

    def theta(self) -> Float64s:
        """Return the model in the solver's coordinates, (1, K, C + 1)."""
        model = np.column_stack([self._weights[0], self._intercept[0]])
        return (model / self._coordinates.scale)[None]


def _move(model: Float32s, mean: Float32s, square: Float32s, gradient: Float32s, rate: Any) -> None:
    """Take Adam's step, in place; the gradient is used up."""
    mean *= np.float32(DECAY)
    mean += np.float32(1 - DECAY) * gradient
    gradient *= gradient
    gradient *= np.float32(1 - DECAY_OF_SQUARES)
    square *= np.float32(DECAY_OF_SQUARES)
    square += gradient
    np.sqrt(square, out=gradient)
    gradient += np.float32(EPSILON)
    np.divide(mean, gradient, out=gradient)
    gradient *= rate
    model -= gradient
