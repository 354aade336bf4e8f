"""The moments of stored features, beside NumPy's in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from satstore.storage.zarr.running_moments import RunningMoments


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (100, 0.5), (30000, 64), (-3, 1e-3), (0, 1e-4)])
def test_feature_moments__are_numpys_in_float64(mean: float, std: float) -> None:
    rows = np.random.default_rng(0).normal(mean, std, (1000, 3, 5)).astype(np.float16)
    moments = RunningMoments((3, 5))
    for start in range(0, 1000, 96):
        moments.update(rows[start : start + 96])
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-6, atol=1e-6 * std)
    np.testing.assert_allclose(moments.std, exact.std(axis=0), rtol=1e-5)


@given(cuts=st.lists(st.integers(1, 30), max_size=5, unique=True))
def test_feature_moments__are_the_same_bits_however_many_blocks_come_at_once(cuts: list[int]) -> None:
    rows = np.random.default_rng(1).normal(2, 3, (31 * 32, 7)).astype(np.float16)
    whole, parts = RunningMoments((7,)), RunningMoments((7,))
    whole.update(rows)
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 31], strict=True):
        parts.update(rows[32 * start : 32 * stop])
    np.testing.assert_array_equal(whole.mean, parts.mean)
    np.testing.assert_array_equal(whole.std, parts.std)


def test_feature_moments__of_constants_have_no_spread_and_sorted_classes_lose_none() -> None:
    constant = RunningMoments((2,))
    constant.update(np.full((100, 2), [0.1, -60000], np.float16))
    np.testing.assert_array_equal(constant.std, 0)
    classes = np.repeat(np.arange(50), 64).astype(np.float16)[:, None]  # the first block is all of one class
    moments = RunningMoments((1,))
    moments.update(classes)
    np.testing.assert_allclose(moments.std, classes.astype(np.float64).std(axis=0), rtol=1e-6)
