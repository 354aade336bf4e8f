import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from satstore.analysis.feature_moments import feature_moments
from satstore.analysis.floats import widen
from satstore.analysis.row_source import ArrayRows, BlockRows, RowSource, as_row_source
from satstore.analysis.tiles import TILE_BYTES, TILE_MAX_ROWS, tile_height, tiles
from satstore.errors import ConfigError, NumericsError


@pytest.fixture
def pool():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def all_float16():
    return np.arange(2**16, dtype=np.uint16).view(np.float16)


@pytest.mark.parametrize("width", [1, 7, 2**16])
def test_widen__equals_numpys_cast_for_every_float16_bit_for_bit(width):
    narrow = np.resize(all_float16(), (2**16 // width + 1, width))
    wide = np.empty(narrow.shape, np.float32)
    widen(narrow, wide)
    expected = narrow.astype(np.float32)
    numbers = ~np.isnan(expected)
    assert np.array_equal(wide[numbers].view(np.uint32), expected[numbers].view(np.uint32))
    assert np.isnan(wide[~numbers]).all()


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64", "bool"])
def test_widen__casts_other_dtypes(dtype):
    values = np.arange(6).reshape(2, 3).astype(dtype)
    wide = np.empty(values.shape, np.float64)
    widen(values, wide)
    assert np.array_equal(wide, values.astype(np.float64))


def recording_rows(array, edges):
    """Rows over an array that note what is loaded."""
    loads = []

    def load(low, high):
        loads.append((low, high))
        return array[low:high]

    return BlockRows(load, array.shape, array.dtype, edges), loads


@settings(deadline=None, max_examples=60)
@given(
    cuts=st.lists(st.integers(0, 50), max_size=8),
    height=st.integers(1, 60),
)
def test_block_rows__load_each_block_once_in_an_ascending_sweep(cuts, height):
    array = np.arange(150, dtype=np.float32).reshape(50, 3)
    rows, loads = recording_rows(array, sorted([0, *cuts, 50]))
    for _ in range(2):
        loads.clear()
        parts = [rows.read(start, min(start + height, 50)) for start in range(0, 50, height)]
        assert np.array_equal(np.concatenate(parts), array)
        covered = [row for low, high in loads for row in range(low, high)]
        assert len(covered) == len(set(covered))


def test_block_rows__read_ranges_in_any_order():
    array = np.arange(60, dtype=np.float32).reshape(20, 3)
    rows, _ = recording_rows(array, [0, 7, 14, 20])
    for start, stop in [(10, 12), (0, 20), (13, 15), (19, 20), (3, 3), (0, 1)]:
        assert np.array_equal(rows.read(start, stop), array[start:stop])


def test_block_rows__keep_a_single_block_for_the_next_sweep():
    array = np.ones((10, 2), np.float32)
    rows, loads = recording_rows(array, [0, 10])
    for _ in range(2):
        for start in range(0, 10, 4):
            rows.read(start, min(start + 4, 10))
    assert loads == [(0, 10)]


@pytest.mark.parametrize(
    ("stored", "read"),
    [("float16", "float32"), ("uint8", "float32"), ("float32", "float32"), ("int32", "float64")],
)
def test_block_rows__widen_to_a_dtype_that_holds_the_values(stored, read):
    array = np.arange(24).reshape(2, 3, 2, 2).astype(stored)
    rows, _ = recording_rows(array, [0, 2])
    assert rows.shape == (2, 12)
    assert rows.read(0, 2).dtype == read
    assert np.array_equal(rows.read(0, 2), array.reshape(2, 12))


def test_block_rows__refuse_one_axis_and_complex_numbers():
    with pytest.raises(ConfigError, match=r"two or more axes; got shape \(3,\)"):
        recording_rows(np.ones(3), [0, 3])
    with pytest.raises(ConfigError, match="real numbers, got dtype complex64"):
        recording_rows(np.ones((3, 2), np.complex64), [0, 3])


def test_as_row_source__wraps_what_is_out_of_core_only(tmp_path):
    array = np.arange(48, dtype=np.float16).reshape(4, 3, 2, 2)
    stored = zarr.create_array(tmp_path / "a.zarr", data=array, chunks=(3, 2, 2, 2))
    lazy = da.from_array(array, chunks=(3, 1, 2, 2))
    rows = ArrayRows(np.ones((2, 2)))
    assert as_row_source(rows) is rows
    for wrapped in (stored, lazy, xr.DataArray(lazy)):
        found = as_row_source(wrapped)
        assert isinstance(found, RowSource)
        assert np.array_equal(found.read(0, 4), array.reshape(4, 12))
    for eager in (array, [[1, 2]], None, "text", xr.DataArray(array)):
        assert as_row_source(eager) is None


def test_as_row_source__refuses_unknown_chunk_sizes():
    lazy = da.ones((6, 2), chunks=2)
    with pytest.raises(ConfigError, match="unknown chunk sizes"):
        as_row_source(lazy[lazy[:, 0] > 0])


def test_as_row_source__refuses_arrays_of_no_axis(tmp_path):
    for array in (zarr.create_array(tmp_path / "a.zarr", data=np.array(1.0)), da.from_array(np.array(1.0))):
        with pytest.raises(ConfigError, match="two or more axes"):
            as_row_source(array)


def test_rows__import_neither_dask_nor_zarr():
    code = "import sys, satstore.analysis.logistic; print({'dask', 'zarr', 'xarray'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize("n_features", [1, 64, 1000, 4096, 100_000, 10**8])
@pytest.mark.parametrize("n_outputs", [1, 10, 1000])
def test_tile_height__keeps_tiles_within_the_budget(n_features, n_outputs):
    height = tile_height(n_features, n_outputs)
    assert 1 <= height <= TILE_MAX_ROWS
    assert height == 1 or 4 * height * (n_features + 2 * n_outputs) <= TILE_BYTES


def test_tiles__cover_the_rows_in_order_less_the_shift(pool):
    array = np.arange(20, dtype=np.float32).reshape(10, 2)
    shift = np.array([1.0, 2.0])
    found = list(tiles(ArrayRows(array), 4, pool, shift=shift, dtype=np.float32))
    assert [place for place, _ in found] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert np.array_equal(np.concatenate([tile for _, tile in found]), array - shift)
    assert {tile.dtype for _, tile in found} == {np.dtype(np.float32)}


def test_tiles__are_views_where_nothing_has_to_change(pool):
    array = np.ones((10, 2), np.float32)
    assert all(
        np.shares_memory(tile, array) for _, tile in tiles(ArrayRows(array), 4, pool, dtype=np.float32)
    )


def test_tiles__take_the_shift_off_before_narrowing(pool):
    array = 1e9 + np.arange(8.0).reshape(4, 2)
    ((_, tile),) = tiles(ArrayRows(array), 4, pool, shift=np.full(2, 1e9), dtype=np.float32)
    assert tile.dtype == np.float32
    assert np.array_equal(tile, np.arange(8.0).reshape(4, 2))


def test_tiles__refuse_a_source_that_gives_another_shape(pool):
    class Short:
        shape = (10, 2)

        def read(self, start, stop):
            return np.ones((1, 2), np.float32)

    with pytest.raises(NumericsError, match=r"rows 0 to 10 of shape \(10, 2\), got \(1, 2\)"):
        list(tiles(Short(), 10, pool, dtype=np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
def test_feature_moments__equal_numpys(pool, dtype):
    array = (np.random.default_rng(0).normal(50, 3, (20_001, 7)) * [1, 2, 3, 4, 0, 100, 1]).astype(dtype)
    mean, std = feature_moments(ArrayRows(array), pool)
    wide = array.astype(np.float64)
    assert np.allclose(mean, wide.mean(axis=0), rtol=1e-13)
    assert np.allclose(std, wide.std(axis=0), rtol=1e-12)
    assert std[4] == 0


def test_feature_moments__stand_a_mean_far_above_the_std(pool):
    array = 1e6 + np.random.default_rng(0).standard_normal((5000, 3))
    _, std = feature_moments(ArrayRows(array), pool)
    assert np.allclose(std, (array - 1e6).std(axis=0), rtol=1e-9)


def test_feature_moments__take_what_the_source_knows(pool):
    rows = BlockRows(pytest.fail, (10, 1, 2), np.float32, [0, 10])
    rows.mean, rows.std = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    mean, std = feature_moments(rows, pool)
    assert mean.tolist() == [0, 0]
    assert std.tolist() == [1, 1]
    rows.std = np.array([1, np.nan])
    with pytest.raises(ConfigError, match="std to be 2 finite numbers, got 2, 1 of them not finite"):
        feature_moments(rows, pool)


def test_feature_moments__name_the_rows_that_are_not_finite(pool):
    array = np.zeros((20_000, 3), np.float32)
    array[9000, 1] = np.nan
    array[9001] = np.inf
    array[12_000:12_004, 2] = -np.inf
    with pytest.raises(
        NumericsError, match=r"^8 values are NaN .* in 6 of 20000 rows \(9000, 9001, 12000, 12001, 12002, …\)"
    ):
        feature_moments(ArrayRows(array), pool)


def test_tiles__need_memory_for_tiles_and_blocks_only(tmp_path, pool):
    shape = (3000, 64, 8, 8)  # 24 MiB of float16, 48 MiB as float32
    stored = zarr.create_array(
        tmp_path / "a.zarr", shape=shape, chunks=(64, 64, 8, 8), shards=(512, 64, 8, 8), dtype="f2"
    )
    for start in range(0, 3000, 512):
        stored[start : start + 512] = 1
    rows, height = as_row_source(stored), 128  # 2 MiB as float32; a block is 0.5 MiB
    tracemalloc.start()
    try:
        total = sum(float(tile[:, 0].sum()) for _, tile in tiles(rows, height, pool, dtype=np.float32))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 3000
    assert peak_bytes < 12 * 2**20
