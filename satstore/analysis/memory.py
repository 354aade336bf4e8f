"""What fits take in memory, in bytes: projected before they begin."""

from satstore.analysis.coordinates import Problem
from satstore.analysis.rows import tile_height
from satstore.analysis.warm_start import is_worthwhile, sample_size

# The solver's vectors, per coefficient of the problems that it solves at once: its history of 10 pairs of
# float32 and, in float64, its points, gradients, directions and sums: 170 bytes with the results, measured.
# (In the rare case that float32's rounding stops it, 80 more.)
SOLVER_BYTES = 146
# Results of all problems: points and weights, float64.
RESULT_BYTES = 24
# A warm start's model and its moments, float32, and parts of batches.
START_BYTES = 60


def n_coefficients(problem: Problem) -> int:
    """Return the coefficients of one of the problems: K · (C + 1)."""
    return problem.shape[1] * problem.shape[2]


def problems_at_once(problem: Problem, room_bytes: int) -> int:
    """Return how many of the problems the solver can take on at once, one at least."""
    return max(1, min(problem.n_positions, room_bytes // (SOLVER_BYTES * n_coefficients(problem))))


def fit_bytes(problem: Problem, n_threads: int) -> int:
    """Return what a fit takes, above its process: of many problems, one at a time.

    Parameters
    ----------
    n_threads
        That compute with a tile each.
    """
    n_logits = problem.n_positions * problem.n_outputs
    height = min(problem.n_rows, tile_height(problem.n_features, n_logits))
    # In each thread a tile, its logits and residuals, and its gradient; besides, tiles as they are stored.
    tile = 4 * height * (problem.n_features + 2 * n_logits)
    gradient = 4 * problem.n_positions * n_coefficients(problem)
    n_tiles = -(-problem.n_rows // height)
    passing = min(n_threads, n_tiles) * (tile + gradient)
    passing += min(n_threads + 3, n_tiles) * 2 * height * problem.n_features
    results = RESULT_BYTES * problem.n_positions * n_coefficients(problem)
    solver = SOLVER_BYTES * n_coefficients(problem)
    start = 0
    if is_worthwhile(problem):
        start = 2 * sample_size(problem) * problem.n_features + START_BYTES * n_coefficients(problem)
    return passing + results + max(solver, start)
