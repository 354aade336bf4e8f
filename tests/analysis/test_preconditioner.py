import numpy as np
import pytest

from satstore.analysis.feature_moments import FeatureMoments
from satstore.analysis.logistic import problem as problem_module
from satstore.analysis.logistic.engine import ThreadEngine, start_tile_threads
from satstore.analysis.logistic.preconditioner import SHRINKAGE, Preconditioner
from satstore.analysis.logistic.problem import SAMPLE_VALUES, LogisticProblem
from satstore.analysis.logistic.solver import solve
from satstore.analysis.row_source import ArrayRows, BlockRows
from satstore.errors import NumericsError


def correlated(n, n_features, rng):
    """Rows of a few strong directions, about a mean, over features whose scales lie decades apart."""
    factors = rng.standard_normal((n, 6)) @ rng.standard_normal((6, n_features)) * 3
    return (factors + rng.standard_normal((n, n_features))) * np.logspace(-2, 1, n_features) + 0.5


def make_problem(n_rows, n_features, n_classes, n_positions=1):
    return LogisticProblem(
        n_rows=n_rows,
        n_features=n_features,
        n_classes=n_classes,
        C=1.0,
        tol=1e-4,
        max_iter=1000,
        n_positions=n_positions,
    )


def make(n=4000, n_features=30, n_positions=1, n_classes=4):
    rng = np.random.default_rng(0)
    rows = correlated(n, n_features, rng)
    problem = make_problem(n, n_features, n_classes, n_positions)
    moments = FeatureMoments(rows.mean(axis=0), rows.std(axis=0))
    return rows, problem, Preconditioner.estimate(moments, rows[:: n // problem.n_sample], problem)


@pytest.mark.parametrize("n_positions", [1, 3])
def test_preconditioner__gradients_are_pulled_back_by_the_transpose_of_the_model(n_positions):
    _, problem, preconditioner = make(n_positions=n_positions)
    rng = np.random.default_rng(1)
    theta = rng.standard_normal(problem.shape)
    by_weights, by_offset = (
        rng.standard_normal((n_positions, 4, 30 // n_positions)),
        rng.standard_normal((n_positions, 4)),
    )
    weights, offset = preconditioner.to_model(theta)
    pulled = preconditioner.pull_back_gradient(by_weights, by_offset)
    assert np.vdot(pulled, theta) == pytest.approx(np.vdot(by_weights, weights) + np.vdot(by_offset, offset))


@pytest.mark.parametrize("n_positions", [1, 2])
def test_preconditioner__make_the_objective_as_curved_in_all_directions(n_positions):
    rows, problem, preconditioner = make(n_positions=n_positions)
    for position in range(n_positions):
        columns = np.arange(30).reshape(n_positions, -1)[position]
        covariance = np.cov(rows[:, columns].T)
        curvature = np.eye(len(columns)) + problem.strength * covariance
        directions = np.zeros((len(columns), *problem.shape))
        directions[np.arange(len(columns)), position, 0, np.arange(len(columns))] = 1
        change = np.array([preconditioner.to_model(one)[0][position, 0] for one in directions])
        before, after = np.linalg.eigvalsh(curvature), np.linalg.eigvalsh(change @ curvature @ change.T)
        # What the shrinkage gives of noise's own variance is the most that is left.
        assert after[-1] / after[0] < min(1.2 / SHRINKAGE, before[-1] / before[0] / 30)


def test_preconditioner__of_no_sample_scale_alone():
    rows, problem, _ = make()
    moments = FeatureMoments(rows.mean(axis=0), rows.std(axis=0))
    preconditioner = Preconditioner.estimate(moments, np.empty((0, 30)), problem)
    weights, _ = preconditioner.to_model(np.ones(problem.shape))
    assert weights == pytest.approx(np.broadcast_to(preconditioner.scale[:, None, :-1], weights.shape))


def test_preconditioner__at_some_positions_are_theirs():
    _, problem, preconditioner = make(n_positions=3)
    theta = np.random.default_rng(1).standard_normal(problem.shape)
    weights, offset = preconditioner.to_model(theta)
    some = preconditioner.select(np.array([0, 2])).to_model(theta[[0, 2]])
    assert some[0] == pytest.approx(weights[[0, 2]])
    assert some[1] == pytest.approx(offset[[0, 2]])


@pytest.mark.parametrize(("n_rows", "n_features"), [(1, 1), (3, 5), (100, 20), (10**6, 4096), (10**6, 10**8)])
def test_problem__samples_no_more_than_there_is_and_memory_holds(n_rows, n_features):
    n_sample = make_problem(n_rows, n_features, 10).n_sample
    assert 0 <= n_sample <= n_rows
    assert n_sample * n_features <= SAMPLE_VALUES


def test_sample__is_the_same_rows_however_they_are_stored():
    values = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    blocks = BlockRows(lambda low, high: values[low:high], values.shape, values.dtype, [0, 7, 400, 1000])
    with start_tile_threads(2) as threads:
        for rows in (ArrayRows(values), blocks):
            engine = ThreadEngine(rows, np.zeros(1000, np.int64), 4, threads)
            np.testing.assert_array_equal(engine.sample(7), values[np.arange(7) * 1000 // 7])
            assert engine.sample(0).shape == (0, 3)


def test_sample__that_is_not_finite_is_an_error():
    values = np.ones((1000, 3), np.float32)
    values[500] = np.inf
    with start_tile_threads(1) as threads:
        engine = ThreadEngine(ArrayRows(values), np.zeros(1000, np.int64), 4, threads)
        with pytest.raises(NumericsError, match="1 of 1000 rows"):
            engine.sample(10)


def test_solve__of_correlated_features_takes_few_passes(monkeypatch):
    rng = np.random.default_rng(0)
    rows = correlated(4000, 300, rng).astype(np.float32)
    codes = (rows @ rng.standard_normal((300, 5))).argmax(axis=1)
    problem = make_problem(4000, 300, 5)
    passes = []
    with start_tile_threads(1) as threads:
        engine = ThreadEngine(ArrayRows(rows), codes, 5, threads)
        for share in (problem_module.SAMPLE_SHARE, 10**6):
            monkeypatch.setattr(problem_module, "SAMPLE_SHARE", share)
            found = solve(engine, problem)
            assert found.converged.all()
            passes.append(found.n_passes)
    assert passes[0] < passes[1] / 2
