import tracemalloc

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from satstore.analysis.logistic.estimator import LogisticProbe
from satstore.analysis.logistic.memory import fit_bytes, problems_at_once
from satstore.analysis.logistic.problem import LogisticProblem
from satstore.analysis.row_source import BlockRows


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("n_rows", "n_features", "n_classes"),
    [(1024, 4096, 100), pytest.param(9000, 1024, 60, marks=pytest.mark.long)],
)
def test_fit_bytes__are_what_a_fit_takes(n_rows, n_features, n_classes):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((n_rows, n_features), dtype=np.float32).astype(np.float16)
    edges = [*range(0, n_rows, 256), n_rows]
    rows = BlockRows(lambda low, high: features[low:high].copy(), features.shape, features.dtype, edges)
    with threadpool_limits(2):
        tracemalloc.start()
        try:
            LogisticProbe(max_iter=14, tol=0).fit(rows, rng.integers(0, n_classes, n_rows))
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    problem = LogisticProblem(
        n_rows=n_rows, n_features=n_features, n_classes=n_classes, C=1.0, tol=1e-4, max_iter=14
    )
    projected = fit_bytes(problem, n_threads=2)
    assert 0.8 * projected < peak_bytes < 1.2 * projected


def test_problems_at_once__are_as_many_as_there_is_room_for():
    problem = LogisticProblem(
        n_rows=1000, n_features=64 * 32, n_classes=10, C=1.0, tol=1e-4, max_iter=100, n_positions=64
    )
    assert problems_at_once(problem, 2**40) == 64
    assert problems_at_once(problem, 0) == 1
    assert 1 < problems_at_once(problem, 2**20) < 64
