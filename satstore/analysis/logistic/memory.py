"""Project the memory that fits take, in bytes, before they begin."""

from satstore.analysis.logistic.problem import LogisticProblem
from satstore.analysis.tiles import tile_height

# The solver's vectors, per coefficient of the problems that it solves at once: its history of 10 pairs of
# float32 and, in float64, its points, gradients, directions and sums: 170 bytes with the results, measured.
# (In the rare case that float32's rounding stops it, 80 more.)
SOLVER_BYTES = 146
# Results of all problems: points and weights, float64.
RESULT_BYTES = 24
# A sample's values as they are read (float32) and as the preconditioner takes them (float64), and its basis
# (at most as many directions as rows, float64); only the basis stays.
SAMPLE_BYTES, BASIS_BYTES = 12, 8


def problems_at_once(problem: LogisticProblem, room_bytes: int) -> int:
    """Return how many of the problems the solver has room for at once, one at least."""
    return max(1, min(problem.n_positions, room_bytes // (SOLVER_BYTES * problem.n_coefficients)))


def fit_bytes(problem: LogisticProblem, n_threads: int) -> int:
    """Return the bytes that a fit takes on top of its process: of many problems, solved one at a time."""
    n_logits = problem.n_logits
    height = min(problem.n_rows, tile_height(problem.n_features, n_logits))
    n_tiles = -(-problem.n_rows // height)
    n_computing = min(n_threads, n_tiles)
    # In each thread a tile, and while it computes logits, residuals and a gradient; tiles as they are stored.
    tiles = n_computing * 4 * height * problem.n_features
    passing = n_computing * 4 * (2 * height * n_logits + problem.n_positions * problem.n_coefficients)
    passing += min(n_threads + 3, n_tiles) * problem.value_bytes * height * problem.n_features
    solver = SOLVER_BYTES * problem.n_coefficients
    results = RESULT_BYTES * problem.n_positions * problem.n_coefficients
    sample = problem.n_sample * problem.n_features
    side = min(problem.n_sample, problem.n_features // problem.n_positions)
    # Gram matrices, their eigenvectors, and LAPACK's workspace for one.
    start = SAMPLE_BYTES * sample + 16 * (problem.n_positions + 1) * side**2
    return tiles + results + BASIS_BYTES * sample + max(passing + solver, start)
