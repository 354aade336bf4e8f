"""Shards are the bytes that Zarr would write, and read by Zarr as what they hold."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from satstore.storage.zarr.layout import create_array
from satstore.storage.zarr.shard_codec import ShardReader, encode_shard, is_house_encoding, shard_key

SHAPE = (3, 2, 2)


def make_array(path: Path, n: int, bits: int = 10) -> zarr.Array:
    group = zarr.open_group(path, mode="a")
    axes = ("sample", "channel", "y", "x")
    return create_array(
        group,
        "latent",
        (n, *SHAPE),
        np.float16,
        axes,
        mantissa_bits=bits,
        chunks=(8, *SHAPE),
        shards=(32, *SHAPE),
    )


def make_rows(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, *SHAPE)).astype(np.float16)


@pytest.mark.parametrize("bits", [10, 5])
@pytest.mark.parametrize("n", [1, 8, 31, 32, 33, 90])
def test_encode_shard__gives_the_bytes_that_zarr_writes(tmp_path: Path, n: int, bits: int) -> None:
    array, rows = make_array(tmp_path, n, bits), make_rows(n)
    rows[8:16] = np.nan  # a chunk that Zarr leaves out
    rows[16:17] = np.nan
    array[...] = rows
    for shard in range(-(-n // 32)):
        written = (tmp_path / "latent" / shard_key(array, shard)).read_bytes()
        assert b"".join(encode_shard(array, rows[32 * shard : 32 * shard + 32])) == written


def test_encode_shard__of_nothing_but_nan_is_there_and_read_as_nan(tmp_path: Path) -> None:
    array = make_array(tmp_path, 40)
    for shard, rows in enumerate((np.full((32, *SHAPE), np.nan, np.float16), make_rows(8))):
        path = tmp_path / "latent" / shard_key(array, shard)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"".join(encode_shard(array, rows)))
    np.testing.assert_array_equal(array[32:], make_rows(8))
    assert np.isnan(array[:32]).all()


@settings(max_examples=30, deadline=None)
@given(edges=st.tuples(st.integers(0, 90), st.integers(0, 90)).map(sorted))
@example(edges=[0, 90])
@example(edges=[8, 16])
@example(edges=[80, 90])
def test_read__gives_what_zarr_reads_also_into_memory_that_is_there(
    tmp_path_factory: pytest.TempPathFactory, edges: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "read"
    rows = make_rows(90)
    rows[8:16] = np.nan
    if not path.exists():
        make_array(path, 90)[:64] = rows[:64]
        zarr.open_array(path / "latent")[72:] = rows[72:]
    array = zarr.open_array(path / "latent", mode="r")
    start, stop = edges
    reader, out = ShardReader(path / "latent", array), np.full((stop - start + 2, *SHAPE), 7, np.float16)
    found = reader.read(start, stop)
    assert reader.read(start, stop, out[1:-1]).base is out
    for values in (found, out[1:-1]):
        np.testing.assert_array_equal(values, array[start:stop])
    assert (out[[0, -1]] == 7).all()


def test_is_house_encoding__is_of_whole_samples_in_the_houses_codecs(tmp_path: Path) -> None:
    assert is_house_encoding(make_array(tmp_path, 40))
    for index, options in enumerate(
        (
            {"chunks": (8, *SHAPE)},
            {"chunks": (8, 1, 2, 2), "shards": (32, *SHAPE)},
            {"chunks": (8, *SHAPE), "shards": (32, *SHAPE), "compressors": None},
        )
    ):
        other = zarr.create_array(tmp_path / str(index), shape=(40, *SHAPE), dtype="f2", **options)
        assert not is_house_encoding(other)
