import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from satstore.analysis.spectrum import dimension_table, eigenvalues, intrinsic_dimension, saturation
from satstore.errors import ConfigError, NumericsError

DELTAS = [0.01, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0]


def brute_force(spectrum: np.ndarray, delta: float) -> int:
    sums = [0.0]
    for value in spectrum:
        sums.append(sums[-1] + float(value))
    return next(k for k, partial in enumerate(sums) if partial >= delta * sums[-1])


def random_covariance(seed: int, n_features: int, n_samples: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scales = rng.lognormal(sigma=2, size=n_features)
    return np.cov(rng.normal(size=(n_samples, n_features)) * scales, rowvar=False, bias=True)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    n_features=st.integers(2, 24),
    n_samples=st.integers(2, 60),
    delta=st.sampled_from(DELTAS),
)
def test_intrinsic_dimension__is_that_of_a_brute_force_search(seed, n_features, n_samples, delta):
    covariance = random_covariance(seed, n_features, n_samples)
    oracle = np.maximum(np.sort(np.linalg.eigvalsh(covariance))[::-1], 0)
    spectrum = eigenvalues(covariance)
    np.testing.assert_allclose(spectrum, oracle, rtol=1e-12, atol=1e-12 * oracle[0])
    assert intrinsic_dimension(spectrum, delta) == brute_force(oracle, delta)


def test_eigenvalues__are_descending_and_never_negative():
    spectrum = eigenvalues(random_covariance(0, 40, 5))  # rank 4: the rest is rounding around 0
    assert spectrum.dtype == np.float64
    assert (np.diff(spectrum) <= 0).all()
    assert spectrum[-1] == 0
    np.testing.assert_array_equal(eigenvalues(np.diag([-1.0, 2.0])), [2.0, 0.0])


@pytest.mark.parametrize("definition", ["exact", "delve"])
def test_intrinsic_dimension__is_vectorised_over_leading_axes(definition):
    spectra = np.stack([eigenvalues(random_covariance(seed, 8, 30)) for seed in range(6)])
    expected = [intrinsic_dimension(spectrum, 0.95, definition) for spectrum in spectra]
    got = intrinsic_dimension(spectra.reshape(2, 3, 8), 0.95, definition)
    np.testing.assert_array_equal(got, np.reshape(expected, (2, 3)))
    np.testing.assert_array_equal(saturation(spectra, 0.95, definition), np.array(expected) / 8)


@pytest.mark.parametrize(
    ("spectrum", "delta", "expected"),
    [
        ([0, 0, 0], 0.99, 0),
        ([0, 0, 0], 1.0, 0),
        ([5, 0, 0], 0.99, 1),
        ([5, 0, 0], 1.0, 1),
        ([1, 1, 1, 1], 0.5, 2),
        ([1, 1, 1, 1], 0.51, 3),
        ([1, 1, 1, 1], 1.0, 4),
        ([3, 1, 0, 0], 1.0, 2),
        ([1], 0.3, 1),
    ],
)
def test_intrinsic_dimension__by_hand(spectrum, delta, expected):
    assert intrinsic_dimension(np.array(spectrum, float), delta) == expected


def test_intrinsic_dimension__finds_a_k_at_delta_1_whatever_the_rounding():
    spectra = np.sort(np.random.default_rng(0).lognormal(sigma=5, size=(500, 37)))[:, ::-1]
    dimension = intrinsic_dimension(spectra, 1.0)
    assert (dimension <= 37).all()
    assert dimension.tolist() == [brute_force(spectrum, 1.0) for spectrum in spectra]


@pytest.mark.parametrize("definition", ["exact", "delve"])
def test_intrinsic_dimension__is_nan_where_the_spectrum_is(definition):
    spectra = np.array([[2.0, 1.0], [np.nan, np.nan], [np.inf, 1.0], [1.0, np.nan]])
    np.testing.assert_array_equal(
        np.isnan(intrinsic_dimension(spectra, 0.9, definition)), [False, True, True, True]
    )
    np.testing.assert_array_equal(np.isnan(saturation(spectra, 0.9, definition)), [False, True, True, True])


@pytest.mark.filterwarnings("ignore")  # of the delve package and what it imports
@pytest.mark.parametrize("delta", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_intrinsic_dimension__of_delve_is_that_of_the_package(delta):
    import torch
    from delve.metrics import compute_intrinsic_dimensionality, compute_saturation

    covariances = [random_covariance(seed, 12, 40) for seed in range(40)]
    covariances += [
        np.zeros((4, 4)),
        np.diag([3.0, 0, 0]),
        np.diag([4.0, 3.0, 2.0, 0.1]),
        np.outer([1, 2], [1, 2]),
    ]
    for covariance in covariances:
        ours = eigenvalues(covariance)
        theirs = torch.from_numpy(np.asarray(covariance, float))
        assert intrinsic_dimension(ours, delta, "delve") == compute_intrinsic_dimensionality(theirs, delta)
        assert saturation(ours, delta, "delve") == compute_saturation(theirs, delta)


@pytest.mark.parametrize("delta", [0.0, -0.1, 1.0001, float("nan")])
def test_intrinsic_dimension__refuses_a_delta_outside_0_to_1(delta):
    with pytest.raises(ConfigError, match="delta"):
        intrinsic_dimension(np.ones(3), delta)


def test_intrinsic_dimension__refuses_other_definitions_and_empty_spectra():
    with pytest.raises(ConfigError, match="definition is 'delta'"):
        intrinsic_dimension(np.ones(3), 0.9, "delta")
    with pytest.raises(ConfigError, match="spectrum"):
        intrinsic_dimension(np.ones((3, 0)), 0.9)


def test_eigenvalues__refuses_what_is_no_covariance():
    with pytest.raises(ConfigError, match=r"\(2, 3\)"):
        eigenvalues(np.ones((2, 3)))
    with pytest.raises(NumericsError, match="1 of 4"):
        eigenvalues(np.array([[1.0, 0.0], [0.0, np.nan]]))


def test_spectrum__does_not_import_torch():
    code = "import sys, satstore.analysis.spectrum; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(
    arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.floats(0, 1e6)),
    st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=8),
)
def test_dimension_table__equals_the_dimension_at_each_delta(
    values: NDArray[np.float64], deltas: list[float]
) -> None:
    spectra = -np.sort(-values, axis=-1)
    table = dimension_table(spectra, deltas)
    for place, delta in enumerate(deltas):
        np.testing.assert_array_equal(table[:, place], intrinsic_dimension(spectra, delta))


def test_dimension_table__is_nan_where_the_spectrum_is() -> None:
    table = dimension_table(np.array([[3.0, 1.0], [math.nan, math.nan], [0.0, 0.0]]), [0.5, 1.0])
    np.testing.assert_array_equal(table, [[1, 2], [math.nan, math.nan], [0, 0]])
