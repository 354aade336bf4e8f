import numpy as np
import pytest
from scipy.optimize import minimize as scipy_minimize
from scipy.optimize import rosen, rosen_der

from satstore.analysis.logistic.lbfgs import StoppingCriteria, ValueAndGradient, minimize


def evaluate_rosen(points, _):
    gradients = np.array([rosen_der(point) for point in points])
    return ValueAndGradient(np.array([rosen(p) for p in points]), gradients, np.abs(gradients).max(axis=1))


def stop_at(n, tol=1e-6, rounding=1e-15):
    return StoppingCriteria(tol=tol, max_iter=np.full(n, 500), rounding=rounding, max_trials=20)


OPTIONS = {"memory": 10, "dtype": np.float64}


@pytest.fixture
def starts():
    return np.random.default_rng(0).standard_normal((7, 12))


def test_minimize__takes_about_as_many_iterations_as_scipys(starts):
    found = minimize(evaluate_rosen, starts, stop_at(7), **OPTIONS)
    assert not found.stalled.any()
    assert (found.optimality <= 1e-6).all()
    assert np.allclose(found.point, 1, atol=1e-5)
    for start, n_iterations in zip(starts, found.n_iterations, strict=True):
        peer = scipy_minimize(
            rosen, start, jac=rosen_der, method="L-BFGS-B", options={"gtol": 1e-6, "ftol": 0}
        )
        assert n_iterations <= 1.2 * peer.nit


def test_minimize__solves_each_problem_as_it_would_alone(starts):
    together = minimize(evaluate_rosen, starts, stop_at(7), **OPTIONS)
    for index, start in enumerate(starts):
        alone = minimize(evaluate_rosen, start[None], stop_at(1), **OPTIONS)
        assert np.allclose(together.point[index], alone.point[0], atol=1e-6)


def test_minimize__evaluates_only_what_is_under_way(starts):
    seen = []

    def evaluate(points, index):
        seen.append(list(index))
        return evaluate_rosen(points, index)

    starts[3] = 1.0  # the minimum
    minimize(evaluate, starts, stop_at(7), **OPTIONS)
    assert seen[0] == list(range(7))
    assert all(3 not in index for index in seen[1:])
    assert len(seen[-1]) < 6


def test_minimize__stops_after_max_iter_iterations(starts):
    limits = StoppingCriteria(tol=0.0, max_iter=np.array([0, 1, 5]), rounding=0.0, max_trials=20)
    found = minimize(evaluate_rosen, starts[:3], limits, **OPTIONS)
    assert list(found.n_iterations) == [0, 1, 5]
    assert np.array_equal(found.point[0], starts[0])


def test_minimize__steps_back_from_what_is_not_finite():
    def evaluate(points, _):
        with np.errstate(invalid="ignore", divide="ignore"):
            value = points[:, 0] - np.log(points[:, 0]) / 2  # for x > 0, the minimum at 1/2
            gradient = 1 - 0.5 / points
        seen.extend(value)
        return ValueAndGradient(value, gradient, np.abs(gradient[:, 0]))

    seen = []
    found = minimize(evaluate, np.array([[0.9]]), stop_at(1), memory=5, dtype=np.float64)
    assert np.isnan(seen[1])
    assert found.point[0, 0] == pytest.approx(0.5, abs=1e-5)


def test_minimize__says_where_the_value_can_not_be_lowered_further():
    noise = np.random.default_rng(0)

    def evaluate(points, _):
        value = np.square(points).sum(axis=1) + 1 + 1e-9 * noise.standard_normal(len(points))
        return ValueAndGradient(value, 2 * points, np.full(len(points), 1.0))

    found = minimize(evaluate, np.ones((2, 3)), stop_at(2, rounding=1e-8), **OPTIONS)
    assert found.stalled.all()
    assert found.value == pytest.approx(1, abs=1e-7)


def test_minimize__goes_by_the_slopes_where_rounding_hides_the_values():
    noise = np.random.default_rng(0)
    curvature = np.geomspace(1, 30, 12)

    def evaluate(points, _):
        evaluations.append(len(points))
        gradient = curvature * points
        value = np.vecdot(points, gradient) / 2 + 1 + 1e-8 * noise.standard_normal(len(points))
        return ValueAndGradient(value, gradient, np.abs(gradient).max(axis=1))

    evaluations = []
    starts = noise.standard_normal((5, 12))
    found = minimize(evaluate, starts, stop_at(5, tol=1e-7, rounding=1e-7), **OPTIONS)
    assert (found.optimality <= 1e-7).all()
    assert len(evaluations) <= 1.3 * found.n_iterations.max()
