import pickle
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.base import clone
from sklearn.datasets import load_digits, make_classification
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_info, threadpool_limits

from satstore.analysis import tiles
from satstore.analysis.logistic import solver
from satstore.analysis.logistic.engine import sum_in_order
from satstore.analysis.logistic.estimator import LogisticProbe, evaluate
from satstore.analysis.logistic.loss import LossQuery, binomial_loss, softmax_loss, tile_loss_and_gradient
from satstore.errors import ConfigError, NumericsError


@parametrize_with_checks([LogisticProbe()])
def test_probe__is_a_scikit_learn_estimator(estimator, check):
    with warnings.catch_warnings():
        # Some checks fit few iterations on purpose, or labels of many classes.
        warnings.simplefilter("ignore")
        check(estimator)


def objective(probe, X, y, C=1.0):
    """½‖W‖² + C·Σ loss, in float64, from its definition."""
    logits = X.astype(np.float64) @ probe.coef_.T + probe.intercept_
    if logits.shape[1] == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    losses = -log_softmax(logits, axis=1)[np.arange(len(y)), np.searchsorted(probe.classes_, y)]
    return 0.5 * np.sum(probe.coef_**2) + C * losses.sum()


def conv_like(n=1500, n_features=96, n_classes=7, seed=0):
    """ReLU features of unequal scales, some always zero, of classes that overlap."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    hidden = rng.standard_normal((n, 16)) + 0.8 * rng.standard_normal((n_classes, 16))[y]
    mixing = rng.standard_normal((16, n_features)) / 4 * np.exp(rng.standard_normal(n_features))
    features = np.maximum(hidden @ mixing - 0.2, 0).astype(np.float32)
    features[:, :3] = 0
    return features, y


def noisy(n_classes, **changes):
    X, y = make_classification(
        800, 20, n_informative=10, n_classes=n_classes, flip_y=0.2, random_state=0, **changes
    )
    return X.astype(np.float32), y


CASES = {
    "binary": lambda: noisy(2),
    "multinomial": lambda: noisy(5),
    "conv-like": conv_like,
    "more features than rows": lambda: conv_like(60, 200, 3),
    "mean far above std": lambda: (noisy(3)[0] + np.float32(1000), noisy(3)[1]),
    "integers": lambda: ((noisy(3)[0] * 10).astype(np.int16), noisy(3)[1]),
}


@pytest.mark.parametrize("C", [0.01, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_probe__agrees_with_scikit_learn(case, C):
    X, y = CASES[case]()
    wide = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)  # b is free: the minimum is the same
    peer = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-8, max_iter=200).fit(wide, y)
    probe = LogisticProbe(C=C, tol=1e-6, max_iter=5000).fit(X, y)
    least = objective(peer, wide, y, C)
    assert probe.converged_
    assert objective(probe, X, y, C) == pytest.approx(least, rel=1e-5)
    assert probe.objective_ == pytest.approx(least, rel=1e-5)
    assert np.mean(probe.predict(X) == peer.predict(wide)) >= 0.998
    assert np.allclose(probe.predict_proba(X), peer.predict_proba(wide), atol=5e-3)
    assert probe.coef_.shape == peer.coef_.shape
    assert probe.decision_function(X).shape == peer.decision_function(wide).shape


def test_probe__reaches_a_lower_objective_than_lbfgs_on_raw_features():
    X, y = load_digits(return_X_y=True)
    with pytest.warns(ConvergenceWarning):
        peer = LogisticRegression(max_iter=60).fit(X, y)
    with pytest.warns(ConvergenceWarning):
        probe = LogisticProbe(max_iter=40).fit(X, y)
    assert probe.n_passes_ < 60
    assert objective(probe, X, y) < objective(peer, X, y)


def test_probe__stands_features_that_differ_by_decades():
    X, y = noisy(4)
    scales = 10 ** np.linspace(-3, 3, 20)
    X = (X * scales).astype(np.float32)
    wide = X.astype(np.float64)
    peer = LogisticRegression(solver="newton-cholesky", tol=1e-8, max_iter=500).fit(wide, y)
    probe = LogisticProbe(tol=1e-4).fit(X, y)
    assert probe.converged_
    assert objective(probe, X, y) == pytest.approx(objective(peer, wide, y), rel=1e-5)
    assert probe.n_passes_ < 200


def test_probe__goes_on_in_float64_where_float32_can_get_no_further(monkeypatch):
    X, y = noisy(3)
    probe = LogisticProbe(tol=2e-7).fit(X, y)
    assert probe.converged_
    wide = X.astype(np.float64)
    logits = wide @ probe.coef_.T + probe.intercept_
    residuals = np.exp(log_softmax(logits, axis=1)) - np.eye(3)[y]
    assert np.abs(residuals.T @ wide + probe.coef_).max() / len(y) < 2.1e-7
    assert np.abs(residuals.mean(axis=0)).max() < 2.1e-7
    monkeypatch.setattr(solver, "WORKING_PRECISIONS", solver.WORKING_PRECISIONS[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert LogisticProbe(tol=2e-7).fit(X, y).n_iter_ < probe.n_iter_


def test_probe__has_converged_where_float64_allows_no_further_descent():
    X, y = noisy(3)
    probe = LogisticProbe(tol=0).fit(X, y)
    assert probe.converged_
    peer = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(X.astype(np.float64), y)
    assert objective(probe, X, y) == pytest.approx(objective(peer, X, y), rel=1e-12)


def test_probe__warns_when_it_has_not_converged():
    X, y = conv_like()
    with pytest.warns(
        ConvergenceWarning, match=r"after 3 iterations .* above tol=0\.0001; raise max_iter or tol"
    ):
        probe = LogisticProbe(max_iter=3).fit(X, y)
    assert not probe.converged_
    assert probe.n_iter_ == 3


def test_probe__reports_its_training_loss():
    X, y = conv_like()
    probe = LogisticProbe(C=0.3).fit(X, y)
    assert probe.train_loss_ == pytest.approx(log_loss(y, probe.predict_proba(X)), rel=1e-5)
    assert probe.objective_ == pytest.approx(
        0.5 * np.sum(probe.coef_**2) + 0.3 * len(y) * probe.train_loss_, rel=1e-12
    )


def same(one, other):
    return (
        np.array_equal(one.coef_, other.coef_)
        and np.array_equal(one.intercept_, other.intercept_)
        and one.n_passes_ == other.n_passes_
    )


@pytest.fixture
def small_tiles(monkeypatch):
    """Make tiles of 64 rows, so that small data have many."""
    monkeypatch.setattr(tiles, "TILE_MAX_ROWS", 64)


@pytest.fixture(scope="module")
def reference():
    """conv-like data and the probe of the NumPy array, with tiles of 64 rows."""
    X, y = conv_like(300, 24, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_MAX_ROWS", 64)
        return X, y, LogisticProbe(tol=0.01).fit(X, y)


def check_chunks(reference, chunk_rows, chunk_features):
    X, y, expected = reference
    chunks = (chunk_rows, chunk_features)
    store = zarr.create_array(zarr.storage.MemoryStore(), data=X, chunks=chunks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_MAX_ROWS", 64)
        for data in (store, da.from_array(X, chunks=chunks)):
            probe = LogisticProbe(tol=0.01).fit(data, y)
            assert same(probe, expected)
            assert np.array_equal(probe.predict_proba(data), expected.predict_proba(X))


@pytest.mark.parametrize(("chunk_rows", "chunk_features"), [(300, 24), (64, 24), (107, 7)])
def test_probe__is_equal_bit_for_bit_for_chunks_of_tiles_and_across(reference, chunk_rows, chunk_features):
    check_chunks(reference, chunk_rows, chunk_features)


@pytest.mark.long
@settings(deadline=None, max_examples=15)
@given(chunk_rows=st.integers(10, 300), chunk_features=st.sampled_from([7, 24]))
def test_probe__is_equal_bit_for_bit_for_all_chunk_sizes(reference, chunk_rows, chunk_features):
    check_chunks(reference, chunk_rows, chunk_features)


@pytest.mark.parametrize(("n_rows", "chunk_rows"), [(150, 61), pytest.param(500, 7, marks=pytest.mark.long)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8"])
def test_probe__is_equal_bit_for_bit_for_all_layouts(small_tiles, dtype, n_rows, chunk_rows):
    X, y = conv_like(n_rows, 24, 3)
    X = (X * 20).astype(dtype)
    expected = LogisticProbe(tol=1e-3).fit(X, y)
    unaligned = np.empty(X.nbytes + 1, np.uint8)[1:].view(dtype).reshape(X.shape)
    unaligned[:] = X
    wider = np.zeros((n_rows, 48), dtype)
    wider[:, ::2] = X
    for data in (np.asfortranarray(X), wider[:, ::2], unaligned, da.from_array(X, chunks=(chunk_rows, 24))):
        assert same(LogisticProbe(tol=1e-3).fit(data, y), expected)


@pytest.mark.parametrize("wrap", [np.asarray, lambda X: da.from_array(X, chunks=(40, 24))])
def test_probe__long_doubles_are_read_as_float64(wrap):
    X, y = conv_like(150, 24, 3)
    X = X.astype(np.float64)
    expected, probe = LogisticProbe().fit(X, y), LogisticProbe().fit(wrap(X.astype(np.longdouble)), y)
    assert same(probe, expected)
    wide = wrap(X.astype(np.longdouble))
    assert np.array_equal(probe.decision_function(wide), expected.decision_function(X))
    assert evaluate(probe, wide, y).loss == evaluate(expected, X, y).loss


@pytest.mark.parametrize("dtype", ["datetime64[s]", "complex64"])
def test_probe__what_are_no_real_numbers_is_refused(dtype):
    X = np.zeros((30, 2), dtype)
    with pytest.raises(ConfigError, match="real numbers, got dtype"):
        LogisticProbe().fit(da.from_array(X), np.arange(30) % 2)
    with pytest.raises(ValueError, match=r"real numbers, got dtype|Complex data not supported"):
        LogisticProbe().fit(X, np.arange(30) % 2)


def test_probe__is_equal_bit_for_bit_for_all_numbers_of_threads(small_tiles):
    X, y = conv_like(1000, 300, 5)
    probes, logits = [], []
    for n_threads in (1, 2, 3):
        with threadpool_limits(n_threads, user_api="blas"):
            probes.append(LogisticProbe(tol=1e-3).fit(X, y))
            logits.append(probes[-1].decision_function(X))
            blas_threads = {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}
            assert blas_threads == {n_threads}
    assert same(probes[0], probes[1])
    assert same(probes[0], probes[2])
    assert np.array_equal(logits[0], logits[1])


def test_probe__fits_in_threads_side_by_side(small_tiles):
    X, y = conv_like(500, 24, 3)
    before = threadpool_info()
    with ThreadPoolExecutor(4) as pool:
        probes = list(pool.map(lambda _: LogisticProbe(tol=1e-3).fit(X, y), range(8)))
    assert all(same(probe, probes[0]) for probe in probes)
    assert threadpool_info() == before


def test_probe__takes_images_from_zarr_and_flattens_them(tmp_path):
    X, y = conv_like(700, 5 * 3 * 3, 4)
    images = X.astype(np.float16).reshape(700, 5, 3, 3)
    stored = zarr.create_array(tmp_path / "a.zarr", data=images, chunks=(100, 5, 3, 3), shards=(300, 5, 3, 3))
    probe = LogisticProbe().fit(stored, da.from_array(y, chunks=100))
    flat = images.reshape(700, -1)
    assert same(probe, LogisticProbe().fit(flat, y))
    assert probe.n_features_in_ == 45
    assert np.array_equal(probe.predict(stored), probe.predict(flat))
    assert probe.score(stored, y) == probe.score(flat, y)
    assert np.array_equal(probe.decision_function(stored), probe.decision_function(flat.astype(np.float32)))


class KnownRows:
    """Rows that count their passes and may know their moments."""

    def __init__(self, array):
        self.array = array
        self.shape = array.shape
        self.n_read = 0

    def read(self, start, stop):
        self.n_read += stop - start
        return self.array[start:stop]


def test_probe__spares_a_pass_if_the_rows_know_their_moments():
    X, y = conv_like()
    plain, known = KnownRows(X), KnownRows(X)
    known.mean, known.std = X.mean(axis=0), X.std(axis=0)
    one, other = LogisticProbe(tol=1e-5).fit(plain, y), LogisticProbe(tol=1e-5).fit(known, y)
    # One more to pick a sample.
    assert plain.n_read == (one.n_passes_ + 2) * len(X)
    assert known.n_read == (other.n_passes_ + 1) * len(X)
    assert other.objective_ == pytest.approx(one.objective_, rel=1e-4)


def test_probe__finds_values_that_are_not_finite_even_if_the_moments_are_known():
    X, y = conv_like()
    X[[4, 1300], 5] = np.nan, np.inf
    with pytest.raises(ValueError, match="NaN"):
        LogisticProbe().fit(X, y)
    rows = KnownRows(X)
    with pytest.raises(NumericsError, match=r"2 values are NaN or infinite, in 2 of 1500 rows \(4, 1300\)"):
        LogisticProbe().fit(rows, y)
    rows.mean, rows.std = np.zeros(96), np.ones(96)
    with pytest.raises(NumericsError, match="2 values"):
        LogisticProbe().fit(rows, y)
    probe = LogisticProbe(tol=0.1).fit(np.nan_to_num(X, posinf=0), y)
    with pytest.raises(NumericsError, match="2 values"):
        probe.predict(rows)


def test_probe__takes_the_fill_value_of_a_lost_chunk_for_an_error(tmp_path):
    stored = zarr.create_array(
        tmp_path / "a.zarr", shape=(30, 2), chunks=(10, 2), dtype="f2", fill_value=np.nan
    )
    stored[:20] = 1
    with pytest.raises(NumericsError, match=r"20 values .* in 10 of 30 rows"):
        LogisticProbe().fit(stored, np.arange(30) % 2)


@pytest.mark.parametrize("wrap", [np.asarray, da.asarray])
def test_probe__refuses_what_it_cannot_fit(wrap):
    X = wrap(np.eye(4))
    with pytest.raises(ValueError, match=r"one class only, np.str_\('a'\)|one class only, 'a'"):
        LogisticProbe().fit(X, ["a"] * 4)
    with pytest.raises(ValueError, match=r"4 rows, got 3 labels|inconsistent numbers of samples"):
        LogisticProbe().fit(X, [0, 1, 1])
    with pytest.raises(ValueError, match=r"y=None|requires y to be passed"):
        LogisticProbe().fit(X, None)
    for wrong in ({"C": 0}, {"C": np.inf}, {"tol": -1}, {"max_iter": 0}):
        with pytest.raises(ConfigError, match=f"expected {next(iter(wrong))} to be"):
            LogisticProbe(**wrong).fit(X, [0, 1, 0, 1])
    with pytest.raises(NotFittedError):
        LogisticProbe().predict(X)
    probe = LogisticProbe().fit(X, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="4 features"):
        probe.predict(wrap(np.eye(3)))


def test_probe__refuses_empty_out_of_core_rows():
    with pytest.raises(ConfigError, match="one row and one feature or more"):
        LogisticProbe().fit(da.ones((4, 0)), [0, 1, 0, 1])


def test_probe__is_cloned_and_pickled():
    X, y = noisy(3)
    probe = LogisticProbe(C=0.5).fit(X + 1000, y)
    assert clone(probe).get_params() == {"C": 0.5, "tol": 1e-4, "max_iter": 1000}
    again = pickle.loads(pickle.dumps(probe))
    assert np.array_equal(again.predict_proba(X), probe.predict_proba(X))


def test_probe__keeps_its_digits_where_the_mean_is_far_above_the_std():
    X, y = noisy(3)
    X = (X + np.float32(3e5)).astype(np.float32)
    centred = X - np.float32(3e5)
    assert LogisticProbe().fit(X, y).score(X, y) == LogisticProbe(tol=1e-7).fit(centred, y).score(centred, y)


# 47 and 125 MiB as float32; half as stored, which with the sums and tiles is above the bound too.
@pytest.mark.parametrize("n_rows", [12_000, pytest.param(32_000, marks=pytest.mark.long)])
def test_fit__needs_no_memory_for_all_rows(tmp_path, monkeypatch, n_rows):
    monkeypatch.setattr(tiles, "TILE_BYTES", 2**20)
    shape = (n_rows, 256, 2, 2)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n_rows)
    stored = zarr.create_array(tmp_path / "a.zarr", shape=shape, chunks=(256, *shape[1:]), dtype="f2")
    for start in range(0, n_rows, 2048):
        part = rng.standard_normal((min(2048, n_rows - start), *shape[1:]), dtype=np.float32)
        part[:, 0, 0, 0] += y[start : start + 2048]
        stored[start : start + 2048] = part
    tracemalloc.start()
    try:
        with pytest.warns(ConvergenceWarning):
            probe = LogisticProbe(max_iter=3).fit(stored, y)
        result = evaluate(probe, stored, y)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.accuracy > 0.4
    assert peak_bytes < 40 * 2**20


@pytest.mark.parametrize("n_outputs", [4, 1])
def test_tile_loss_and_gradient__agrees_with_finite_differences(n_outputs):
    rng = np.random.default_rng(0)
    tile, codes = rng.standard_normal((30, 2, 5)), rng.integers(0, max(n_outputs, 2), 30)
    weights, offset = rng.standard_normal((2, n_outputs, 5)), rng.standard_normal((2, n_outputs))

    def value(step_weights, step_offset):
        return tile_loss_and_gradient(tile, codes, weights + step_weights, offset + step_offset).loss

    found = tile_loss_and_gradient(tile, codes, weights, offset)
    for k in range(n_outputs):
        unit = 1e-5 * np.eye(n_outputs)[k]
        assert (value(0, unit) - value(0, -unit)) / 2e-5 == pytest.approx(found.intercept[:, k], rel=1e-6)
        for j in range(5):
            step = np.outer(unit, np.eye(5)[j])
            slope = (value(step, 0) - value(-step, 0)) / 2e-5
            assert slope == pytest.approx(found.weights[:, k, j], rel=1e-5)


def test_losses__keep_the_tiny_losses_of_rows_that_are_certain():
    total, _ = softmax_loss(np.array([[[0.0], [20.0]]], np.float32), np.array([1]))
    assert total == pytest.approx(np.log1p(np.exp(-20)), rel=1e-5)
    total, _ = binomial_loss(np.array([[[20.0]]], np.float32), np.array([1]))
    assert total == pytest.approx(np.log1p(np.exp(-20)), rel=1e-5)


def test_sum_in_order__adds_tiles_in_float64():
    rng = np.random.default_rng(0)
    tile, codes = rng.standard_normal((100, 5), dtype=np.float32), rng.integers(0, 3, 100)
    query = LossQuery(rng.standard_normal((1, 3, 5), dtype=np.float32), np.zeros((1, 3), np.float32))
    whole = query.share(tile, codes)
    parts = [query.share(tile[p], codes[p]) for p in (slice(50), slice(50, 100))]
    found = sum_in_order(parts, query.zero())
    assert found.loss == pytest.approx(whole.loss)
    assert found.weights.dtype == np.float64
    assert np.allclose(found.weights, whole.weights, rtol=1e-4, atol=1e-5)


def test_evaluate__agrees_with_scikit_learns_metrics(small_tiles):
    X, y = conv_like(900, 40, 8)
    probe = LogisticProbe(C=0.01).fit(X[:600], y[:600])
    result = evaluate(probe, X[600:], y[600:], top=3)
    logits = X[600:].astype(np.float64) @ probe.coef_.T + probe.intercept_
    log_probabilities = log_softmax(logits, axis=1)
    assert result.accuracy == np.mean(logits.argmax(axis=1) == y[600:]) == probe.score(X[600:], y[600:])
    assert result.top_accuracy == top_k_accuracy_score(y[600:], logits, k=3)
    assert result.loss == pytest.approx(-log_probabilities[np.arange(300), y[600:]].mean(), rel=1e-5)
    assert np.array_equal(result.confusion, confusion_matrix(y[600:], probe.predict(X[600:])))
    assert result.confusion.dtype == np.int64
    assert (result.top, result.n_samples, result.n_unseen) == (3, 300, 0)


def test_evaluate__counts_two_classes_and_out_of_core_rows_alike():
    X, y = noisy(2)
    names = np.array(["no", "yes"])[y]
    probe = LogisticProbe().fit(X, names)
    result = evaluate(probe, da.from_array(X, chunks=33), names)
    assert np.array_equal(result.confusion, confusion_matrix(names, probe.predict(X)))
    assert result.loss == evaluate(probe, X, names).loss
    assert result.accuracy == probe.score(X, names)
    assert result.top_accuracy == 1
    assert result.top == 2
    assert result.loss == pytest.approx(probe.train_loss_, rel=1e-6)


def test_evaluate__takes_unseen_labels_for_wrong_and_says_how_many():
    X = np.array([[-1.0], [1.0], [1.0], [-1.0]])
    probe = LogisticProbe().fit(X, [3, 5, 5, 3])
    result = evaluate(probe, X, [3, 5, 4, 9], top=2)
    assert result.accuracy == result.top_accuracy == 0.5
    assert result.confusion.tolist() == [[1, 0], [0, 1]]
    assert (result.n_samples, result.n_unseen) == (4, 2)
    assert result.loss == pytest.approx(log_loss([3, 5], probe.predict_proba(X[:2])))
    assert np.isnan(evaluate(probe, X, [0, 1, 2, 4]).loss)


def test_evaluate__breaks_ties_as_predict_does():
    probe = LogisticProbe().fit(np.zeros((6, 1)), [0, 1, 2, 0, 1, 2])
    assert probe.coef_.tolist() == [[0], [0], [0]]
    result = evaluate(probe, np.zeros((3, 1)), [0, 1, 2], top=2)
    assert result.accuracy == pytest.approx(1 / 3)
    assert result.top_accuracy == pytest.approx(2 / 3)


def test_evaluate__refuses_other_numbers_of_labels():
    probe = LogisticProbe().fit(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(ConfigError, match="each of 4 rows, got 3 labels"):
        evaluate(probe, np.eye(4), [0, 1, 0])
    with pytest.raises(ConfigError, match="top to be 1"):
        evaluate(probe, np.eye(4), [0, 1, 0, 1], top=0)
