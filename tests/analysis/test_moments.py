import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from satstore.analysis.moments import Moments, NonFiniteError
from satstore.analysis.spectrum import eigenvalues, intrinsic_dimension
from satstore.errors import ConfigError, NumericsError


def make_samples(seed, n_samples, n_features, offset=0.0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(n_features, n_features)) * rng.lognormal(size=n_features)
    return rng.normal(size=(n_samples, n_features)) @ mixing + offset * rng.normal(size=n_features)


def record(samples, cuts=(), dtype=torch.float64):
    moments = Moments()
    for batch in np.split(samples, sorted(cuts)):
        moments.update(torch.from_numpy(batch).to(dtype))
    return moments


def assert_moments_of(moments, samples, tolerance):
    covariance = np.cov(samples.T, bias=True).reshape(samples.shape[1], -1)
    scale = np.trace(covariance)
    assert moments.count == len(samples)
    assert moments.mean.dtype == moments.scatter.dtype == torch.float64
    spread = np.sqrt(scale) + np.abs(samples).max()
    np.testing.assert_allclose(moments.mean, samples.mean(0), rtol=0, atol=tolerance * spread)
    np.testing.assert_allclose(moments.covariance(), covariance, rtol=0, atol=tolerance * scale)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    n_samples=st.integers(1, 300),
    n_features=st.integers(1, 12),
    offset=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    cuts=st.lists(st.integers(0, 300), max_size=6),
)
def test_moments__are_numpys_over_any_split_into_batches(seed, n_samples, n_features, offset, cuts):
    samples = make_samples(seed, n_samples, n_features, offset)
    # A batch of its own may lie far from the others: only the samples' own rounding bounds the result.
    assert_moments_of(record(samples, cuts), samples, 1e-9 if offset > 100 or n_samples < 20 else 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 2.0, 100.0])
def test_moments__of_low_precision_samples_are_those_of_their_exact_values(dtype, offset):
    samples = make_samples(1, 2000, 20, offset)
    exact = torch.from_numpy(samples).to(dtype).double().numpy()
    moments = Moments()
    for batch in torch.from_numpy(samples).to(dtype).split(300):
        moments.update(batch)
    assert_moments_of(moments, exact, 1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_moments__of_one_batch_of_many_blocks_are_numpys(offset):
    samples = make_samples(0, 50_000, 5, offset)
    assert_moments_of(record(samples), samples, 1e-12)


@pytest.mark.parametrize("n_features", [3, 64, 65, 127, 129, 256, 511])
def test_moments__of_wide_layers_are_computed_in_strips_without_a_difference(n_features):
    samples = np.random.default_rng(0).normal(size=(400, n_features)) + 1
    moments = record(samples, [100])
    assert_moments_of(moments, samples, 1e-13)
    np.testing.assert_allclose(moments.scatter, moments.scatter.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 3.5, 10.0, 1e3])
def test_moments__of_65536_float32_rows_err_by_a_millionth_of_the_trace(ratio):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(65536, 64)) * np.arange(1, 65) ** -0.75
    mean = rng.normal(size=64)
    samples = (samples + ratio * mean * np.sqrt(samples.var(0).sum() / (mean @ mean))).astype(np.float32)
    moments = record(samples, dtype=torch.float32)
    oracle = np.cov(samples.astype(np.float64).T, bias=True)
    error = np.linalg.norm(moments.covariance().numpy() - oracle, 2) / np.trace(oracle)
    assert error < 1e-6


@pytest.mark.parametrize(("n_features", "tolerance"), [(6, 1e-12), (15, 1e-12), (16, 2e-5), (64, 2e-5)])
def test_moments__of_mostly_constant_maps_do_not_add_up_their_roundings(n_features, tolerance):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(65536, n_features))
    samples[rng.random(65536) < 0.98] = rng.normal(size=n_features)  # a black canvas after the first conv
    samples = samples.astype(np.float32)
    assert_moments_of(record(samples, dtype=torch.float32), samples.astype(np.float64), tolerance)


def test_moments__find_the_intrinsic_dimension_under_a_mean_of_1e4_and_a_std_of_1e_4():
    rng = np.random.default_rng(0)
    samples = 1e4 + 1e-4 * rng.normal(size=(5000, 4)) @ rng.normal(size=(4, 32))
    moments = record(samples, range(500, 5000, 500))
    spectrum = eigenvalues(moments.covariance().numpy())
    oracle = eigenvalues(np.cov((samples - 1e4).T, bias=True))
    np.testing.assert_allclose(spectrum[:4], oracle[:4], rtol=1e-6)
    assert intrinsic_dimension(spectrum, 0.9999) == 4


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), order=st.permutations(range(5)))
def test_merge__does_not_depend_on_order(seed, order):
    samples = make_samples(seed, 250, 6, 5.0)
    parts = np.split(samples, [10, 11, 100, 180])
    merged = Moments()
    for i in order:
        merged.merge(record(parts[i]))
    assert_moments_of(merged, samples, 1e-12)


def test_moments__of_many_batches_of_fewer_rows_than_features_are_all_of_them():
    samples = make_samples(0, 100, 30, 3.0)
    moments = Moments()
    buffer = torch.empty(7, 30, dtype=torch.float64)  # which every batch writes over
    for batch in torch.from_numpy(samples).split(7):
        moments.update(buffer[: len(batch)].copy_(batch))
    assert moments.n_features == 30
    assert_moments_of(moments, samples, 1e-12)


def test_merge__leaves_the_other_alone_and_ignores_empty_ones():
    samples = make_samples(0, 60, 3)
    one, other = record(samples[:20]), record(samples[20:])
    before = other.scatter.clone()
    fresh = Moments()
    fresh.merge(Moments())
    fresh.merge(one)
    fresh.merge(Moments())
    fresh.merge(other)
    assert_moments_of(fresh, samples, 1e-13)
    assert one.count == 20
    assert torch.equal(other.scatter, before)


def test_moments__of_one_row_of_no_variance_and_of_zeros_are_exactly_zero():
    for batch in (torch.randn(1, 4), torch.full((70, 4), 0.1), torch.zeros(9, 4)):
        moments = Moments()
        moments.update(batch)
        moments.update(batch)
        assert torch.equal(moments.covariance(), torch.zeros(4, 4, dtype=torch.float64))
        torch.testing.assert_close(moments.mean, batch[0].double(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_moments__of_features_that_are_all_constant_are_exactly_zero(dtype):
    """Sums in float32 round the mean of equal values: what was left over had a spectrum of its own."""
    value = torch.randn(384, generator=torch.Generator().manual_seed(0)).mul(0.02).to(dtype)
    moments = Moments()
    for n_samples in (1, 37, 1_931, 5_000, 20_000, 2_777, 300, 1_603):
        moments.update(value.expand(n_samples, -1))
    assert torch.count_nonzero(moments.covariance()) == 0
    assert torch.equal(moments.mean, value.double())


def test_moments__of_fewer_samples_than_features_have_their_rank():
    moments = record(make_samples(0, 7, 30))
    spectrum = eigenvalues(moments.covariance().numpy())
    assert intrinsic_dimension(spectrum, 1 - 1e-9) == 6
    assert (
        intrinsic_dimension(eigenvalues(record(np.outer(range(5), range(1, 9)) * 1.0).covariance()), 0.999)
        == 1
    )


@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1e18, 1e25])
def test_moments__of_tiny_and_huge_float32_do_not_underflow_or_overflow(scale):
    samples = (make_samples(0, 100, 5, 1.0) * scale).astype(np.float32)
    assert_moments_of(record(samples, dtype=torch.float32), samples.astype(np.float64), 1e-6)


def test_moments__of_no_rows_change_nothing_and_have_no_covariance():
    moments = Moments()
    moments.update(torch.empty(0, 3))
    assert moments.count == 0
    assert moments.n_features == 0
    with pytest.raises(NumericsError, match="no samples"):
        moments.covariance()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [(np.nan,), (np.inf,), (np.inf, -np.inf), (np.nan, np.inf, 1.0)])
@pytest.mark.parametrize("n_features", [4, 200])  # more rows than features, and fewer
def test_update__with_non_finite_samples_raises_their_count_and_changes_nothing(dtype, bad, n_features):
    samples = make_samples(0, 50, n_features)
    moments = record(samples)
    before = moments.mean.clone(), moments.scatter.clone()
    poisoned = torch.randn(20000 // n_features, n_features).to(dtype)
    poisoned[[-8, 7, -1][: len(bad)], 2] = torch.tensor(bad, dtype=dtype)
    with pytest.raises(NonFiniteError, match="of 20000 values") as caught:
        moments.update(poisoned)
    assert caught.value.count == np.sum(~np.isfinite(bad))
    assert isinstance(caught.value, NumericsError)
    assert isinstance(caught.value, ArithmeticError)
    assert moments.count == 50
    assert torch.equal(moments.mean, before[0])
    assert torch.equal(moments.scatter, before[1])


def test_update__refuses_another_shape():
    moments = record(make_samples(0, 9, 4))
    with pytest.raises(ConfigError, match=r"\(n, 4\), found \(9, 5\)"):
        moments.update(torch.ones(9, 5))
    with pytest.raises(ConfigError, match="found"):
        moments.update(torch.ones(4))
    with pytest.raises(ConfigError, match="features"):
        moments.merge(record(make_samples(0, 9, 5)))


def test_update__is_not_touched_by_autocast_low_precision_or_gradients():
    samples = torch.randn(3000, 64, requires_grad=True)
    expected = Moments()
    expected.update(samples)
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        moments = Moments()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            moments.update(samples)
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    assert torch.equal(moments.scatter, expected.scatter)
    assert not moments.scatter.requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_moments__of_cuda_samples_stay_on_their_device():
    samples = make_samples(0, 5000, 300, 2.0).astype(np.float32)
    moments = Moments()
    for batch in torch.from_numpy(samples).cuda().split(900):
        moments.update(batch)
    assert moments.scatter.is_cuda
    moments.merge(record(samples[:100], dtype=torch.float32))
    oracle = np.cov(np.concatenate([samples, samples[:100]]).astype(np.float64).T, bias=True)
    np.testing.assert_allclose(moments.covariance().cpu(), oracle, atol=1e-6 * np.trace(oracle))
