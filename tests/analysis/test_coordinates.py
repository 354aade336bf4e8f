import numpy as np
import pytest

from satstore.analysis.feature_moments import FeatureMoments
from satstore.analysis.logistic import preconditioner as coordinates_module
from satstore.analysis.logistic.engine import ThreadEngine
from satstore.analysis.logistic.preconditioner import SAMPLE_VALUES, SHRINKAGE, Coordinates, Problem
from satstore.analysis.logistic.solver import solve
from satstore.analysis.logistic.tile_threads import crew_of_threads
from satstore.analysis.row_source import ArrayRows, BlockRows
from satstore.errors import NumericsError


def correlated(n, n_features, rng):
    """Rows of a few strong directions, about a mean, over features whose scales lie decades apart."""
    factors = rng.standard_normal((n, 6)) @ rng.standard_normal((6, n_features)) * 3
    return (factors + rng.standard_normal((n, n_features))) * np.logspace(-2, 1, n_features) + 0.5


def make(n=4000, n_features=30, n_positions=1, n_classes=4):
    rng = np.random.default_rng(0)
    rows = correlated(n, n_features, rng)
    problem = Problem(n, n_features, n_classes, 1.0, 1e-4, 100, n_positions)
    moments = FeatureMoments(rows.mean(axis=0), rows.std(axis=0))
    return rows, problem, Coordinates.of(moments, rows[:: n // problem.n_sample], problem)


@pytest.mark.parametrize("n_positions", [1, 3])
def test_coordinates__gradients_are_pulled_back_by_the_transpose_of_the_model(n_positions):
    _, problem, coordinates = make(n_positions=n_positions)
    rng = np.random.default_rng(1)
    theta = rng.standard_normal(problem.shape)
    by_weights, by_offset = (
        rng.standard_normal((n_positions, 4, 30 // n_positions)),
        rng.standard_normal((n_positions, 4)),
    )
    weights, offset = coordinates.model(theta)
    pulled = coordinates.pull_back(by_weights, by_offset)
    assert np.vdot(pulled, theta) == pytest.approx(np.vdot(by_weights, weights) + np.vdot(by_offset, offset))


@pytest.mark.parametrize("n_positions", [1, 2])
def test_coordinates__make_the_objective_as_curved_in_all_directions(n_positions):
    rows, problem, coordinates = make(n_positions=n_positions)
    for position in range(n_positions):
        columns = np.arange(30).reshape(n_positions, -1)[position]
        covariance = np.cov(rows[:, columns].T)
        curvature = np.eye(len(columns)) + problem.strength * covariance
        directions = np.zeros((len(columns), *problem.shape))
        directions[np.arange(len(columns)), position, 0, np.arange(len(columns))] = 1
        change = np.array([coordinates.model(one)[0][position, 0] for one in directions])
        before, after = np.linalg.eigvalsh(curvature), np.linalg.eigvalsh(change @ curvature @ change.T)
        # What the shrinkage gives of noise's own variance is the most that is left.
        assert after[-1] / after[0] < min(1.2 / SHRINKAGE, before[-1] / before[0] / 30)


def test_coordinates__of_no_sample_scale_alone():
    rows, problem, _ = make()
    moments = FeatureMoments(rows.mean(axis=0), rows.std(axis=0))
    coordinates = Coordinates.of(moments, np.empty((0, 30)), problem)
    weights, _ = coordinates.model(np.ones(problem.shape))
    assert weights == pytest.approx(np.broadcast_to(coordinates.scale[:, None, :-1], weights.shape))


def test_coordinates__at_some_positions_are_theirs():
    _, problem, coordinates = make(n_positions=3)
    theta = np.random.default_rng(1).standard_normal(problem.shape)
    weights, offset = coordinates.model(theta)
    some = coordinates.at(np.array([0, 2])).model(theta[[0, 2]])
    assert some[0] == pytest.approx(weights[[0, 2]])
    assert some[1] == pytest.approx(offset[[0, 2]])


@pytest.mark.parametrize(("n_rows", "n_features"), [(1, 1), (3, 5), (100, 20), (10**6, 4096), (10**6, 10**8)])
def test_problem__samples_no_more_than_there_is_and_memory_holds(n_rows, n_features):
    n_sample = Problem(n_rows, n_features, 10, 1.0, 1e-4, 100).n_sample
    assert 0 <= n_sample <= n_rows
    assert n_sample * n_features <= SAMPLE_VALUES


def test_sample__is_the_same_rows_however_they_are_stored():
    values = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    blocks = BlockRows(lambda low, high: values[low:high], values.shape, values.dtype, [0, 7, 400, 1000])
    with crew_of_threads(2) as crew:
        for rows in (ArrayRows(values), blocks):
            engine = ThreadEngine(rows, np.zeros(1000, np.int64), 4, crew)
            np.testing.assert_array_equal(engine.sample(7), values[np.arange(7) * 1000 // 7])
            assert engine.sample(0).shape == (0, 3)


def test_sample__that_is_not_finite_is_an_error():
    values = np.ones((1000, 3), np.float32)
    values[500] = np.inf
    with crew_of_threads(1) as crew:
        engine = ThreadEngine(ArrayRows(values), np.zeros(1000, np.int64), 4, crew)
        with pytest.raises(NumericsError, match="1 of 1000 rows"):
            engine.sample(10)


def test_solve__of_correlated_features_takes_few_passes(monkeypatch):
    rng = np.random.default_rng(0)
    rows = correlated(4000, 300, rng).astype(np.float32)
    codes = (rows @ rng.standard_normal((300, 5))).argmax(axis=1)
    problem = Problem(4000, 300, 5, 1.0, 1e-4, 1000)
    passes = []
    with crew_of_threads(1) as crew:
        engine = ThreadEngine(ArrayRows(rows), codes, 5, crew)
        for share in (coordinates_module.SAMPLE_SHARE, 10**6):
            monkeypatch.setattr(coordinates_module, "SAMPLE_SHARE", share)
            found = solve(engine, problem)
            assert found.converged.all()
            passes.append(found.n_passes)
    assert passes[0] < passes[1] / 2
