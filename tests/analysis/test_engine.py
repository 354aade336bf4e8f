import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score

from satstore.analysis import tiles
from satstore.analysis.logistic.engine import (
    MAX_SPANS,
    ThreadEngine,
    make_spans,
    start_tile_threads,
    sum_in_order,
    sums_of_spans,
)
from satstore.analysis.logistic.evaluation import EvaluationQuery
from satstore.analysis.logistic.loss import LossQuery
from satstore.analysis.logistic.problem import LogisticProblem
from satstore.analysis.logistic.solver import solve
from satstore.analysis.logistic.torch_engine import TorchEngine
from satstore.analysis.row_source import ArrayRows, BlockRows
from satstore.errors import NumericsError

N, P, C = 400, 6, 5

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def make_maps(n_classes):
    """Rows (n, P · C) of P positions with C features each, and the classes that they tell a little of."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, n_classes, N)
    means = 0.7 * rng.standard_normal((n_classes, P, C))
    return (rng.standard_normal((N, P, C)) + means[codes]).astype(np.float32).reshape(N, -1), codes


def make_problem(n_classes, tol=1e-5, n_positions=P):
    return LogisticProblem(
        n_rows=N,
        n_features=n_positions * C,
        n_classes=n_classes,
        C=1.0,
        tol=tol,
        max_iter=500,
        n_positions=n_positions,
    )


@pytest.fixture
def threads():
    with start_tile_threads() as threads:
        yield threads


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_MAX_ROWS", 16)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_solve__fits_each_position_as_scikit_learn_does(threads, n_classes):
    features, codes = make_maps(n_classes)
    problem = make_problem(n_classes, tol=1e-6)
    found = solve(ThreadEngine(ArrayRows(features), codes, problem.n_logits, threads), problem)
    assert found.converged.all()
    assert found.n_passes <= 3 * found.n_iterations.max()
    for position in range(P):
        x = features.reshape(N, P, C)[:, position]
        peer = LogisticRegression(tol=1e-8, max_iter=1000).fit(x, codes)
        assert found.weights[position] == pytest.approx(peer.coef_, abs=3e-3)
        assert found.intercept[position] == pytest.approx(peer.intercept_, abs=1e-3)
        losses = log_loss(codes, peer.predict_proba(x))
        assert found.mean_loss[position] == pytest.approx(losses, rel=1e-4)


def test_solve__fits_a_position_as_if_it_were_alone(threads):
    features, codes = make_maps(3)
    together = solve(ThreadEngine(ArrayRows(features), codes, P * 3, threads), make_problem(3))
    alone = ArrayRows(np.ascontiguousarray(features.reshape(N, P, C)[:, 2]))
    one = solve(ThreadEngine(alone, codes, 3, threads), make_problem(3, n_positions=1))
    assert one.weights[0] == pytest.approx(together.weights[2], abs=1e-4)


@pytest.fixture(scope="module")
def reference():
    features, codes = make_maps(3)
    problem = make_problem(3)
    with start_tile_threads(1) as threads:
        return solve(ThreadEngine(ArrayRows(features), codes, P * 3, threads), problem)


DEVICES = [None, "cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@settings(max_examples=25)
@given(
    block=st.integers(1, N),
    n_at_once=st.integers(1, P),
    n_threads=st.integers(1, 3),
    device=st.sampled_from(DEVICES),
)
def test_solve__does_not_depend_on_chunks_memory_threads_or_device(
    reference, block, n_at_once, n_threads, device
):
    """Memory decides how many positions are solved at once, and whether rows are held."""
    features, codes = make_maps(3)
    problem = make_problem(3)
    edges = [*range(0, N, block), N]
    rows = BlockRows(lambda low, high: features[low:high], features.shape, features.dtype, edges)
    with start_tile_threads(n_threads) as threads:
        if device is None:
            engine = ThreadEngine(rows, codes, P * 3, threads)
        else:
            engine = TorchEngine(rows, codes, P * 3, threads, device=torch.device(device))
        found = solve(engine, problem, n_at_once)
    assert found.converged.all()
    if device is None and n_at_once == P:
        np.testing.assert_array_equal(found.weights, reference.weights)
        np.testing.assert_array_equal(found.objective, reference.objective)
    assert found.objective == pytest.approx(reference.objective, rel=1e-5)
    assert found.weights == pytest.approx(reference.weights, abs=2e-3)


def test_make_spans__cover_all_tiles_in_order():
    for n_rows in (1, 15, 16, 17, 16 * MAX_SPANS, 16 * MAX_SPANS + 1, 5000):
        spans = make_spans(n_rows, 16)
        assert [start for span in spans for start in span] == list(range(0, n_rows, 16))
        assert len(spans) <= MAX_SPANS


@pytest.mark.usefixtures("small_tiles")
def test_sums_of_spans__add_up_to_the_engines_sums_bit_for_bit(threads):
    features, codes = make_maps(4)
    rng = np.random.default_rng(1)
    query = LossQuery(
        rng.standard_normal((P, 4, C), dtype=np.float32), rng.standard_normal((P, 4), dtype=np.float32)
    )
    rows = ArrayRows(features)
    whole = ThreadEngine(rows, codes, P * 4, threads).sums(query)
    spans = make_spans(N, 16)
    # As separate workers would: each span by itself, in any order.
    parts = {
        i: next(sums_of_spans(rows, codes, query, spans=[spans[i]], threads=threads))
        for i in reversed(range(len(spans)))
    }
    added = sum_in_order((parts[i] for i in range(len(spans))), query.zero())
    assert all(np.array_equal(one, other) for one, other in zip(whole, added, strict=True))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=GPU)])
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("kept_share", [0.0, 1.0])
def test_torch_engine__agrees_with_threads(threads, device, n_classes, kept_share, monkeypatch):
    features, codes = make_maps(n_classes)
    features += 1000  # far from 0, so that rows are shifted
    problem = make_problem(n_classes)
    size = problem.n_logits
    expected = solve(ThreadEngine(ArrayRows(features), codes, size, threads), problem)
    engine = TorchEngine(ArrayRows(features), codes, size, threads, device=torch.device(device))
    monkeypatch.setattr(engine, "_room_bytes", kept_share * features.nbytes / 2)
    found = solve(engine, problem)
    assert found.weights == pytest.approx(expected.weights, abs=1e-3)
    assert found.objective == pytest.approx(expected.objective, rel=1e-5)
    query = EvaluationQuery(*found.model(np.float32), top=1)
    assert engine.sums(query).right.min() > N / n_classes


def test_torch_engine__names_the_rows_that_are_not_finite(threads):
    features, codes = make_maps(3)
    features[7, 3] = np.nan
    engine = TorchEngine(ArrayRows(features), codes, P * 3, threads, device=torch.device("cpu"))
    query = LossQuery(np.ones((P, 3, C), np.float32), np.zeros((P, 3), np.float32))
    with pytest.raises(NumericsError, match="1 values are NaN or infinite, in 1 of 400 rows"):
        engine.sums(query)


@pytest.mark.usefixtures("small_tiles")
def test_evaluation_query__counts_each_position_as_scikit_learn_does(threads):
    features, codes = make_maps(4)
    rng = np.random.default_rng(1)
    weights, offset = rng.standard_normal((P, 4, C), dtype=np.float32), np.zeros((P, 4), np.float32)
    unseen = np.where(np.arange(N) % 50 == 0, -1, codes)
    found = ThreadEngine(ArrayRows(features), unseen, P * 4, threads).sums(
        EvaluationQuery(weights, offset, None, top=2)
    )
    seen = unseen >= 0
    for position in range(P):
        logits = features.reshape(N, P, C)[seen, position].astype(np.float64) @ weights[position].T
        right = confusion_matrix(codes[seen], logits.argmax(axis=1))
        assert np.array_equal(found.confusion[position], right)
        assert found.right[position] == np.trace(right)
        top = top_k_accuracy_score(codes[seen], logits, k=2, normalize=False)
        assert found.top[position] == top
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        assert found.loss[position] == pytest.approx(log_loss(codes[seen], shares, normalize=False), rel=1e-4)
