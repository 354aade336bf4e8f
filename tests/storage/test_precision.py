"""What latents are stored as: float16 where that keeps the spread of each feature, else float32."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from faults import Disk, lay_out
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from splits import Split, check_whole, contents, interrupted, log_of
from zarr.codecs import BloscCodec

from satstore.config.latent_keys import LatentsKey
from satstore.storage.location import Folder
from satstore.storage.zarr import LatentWriter, open_latents
from satstore.storage.zarr.compression_trial import encoded_ratio
from satstore.storage.zarr.precision import Extent, choose_precision

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {"pool2": {"conv0": (4, 2, 2), "fc": (5,)}}
CONV = ("pool2", "conv0")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "latents.zarr"


def split_of(change: Callable[[NDArray[np.float32]], Any], n: int = 40) -> Split:
    """Return a split whose conv layer is changed in place; the linear one stays as float16 is made for."""
    split = Split(n, SHAPES)
    change(split.latents["pool2"]["conv0"])
    return split


def offset(values: NDArray[np.float32], mean: float = 1e4) -> None:
    """Give values a mean and a standard deviation of about 1."""
    values[...] = mean + values / np.float32(20)


def check_bits(exact: NDArray[np.float32], stored: NDArray[Any], n_bits: int = 8) -> None:
    """Check that rounding took no more of a feature than half a step, of 2**n_bits in its range."""
    wide = exact.astype(np.float64)
    error = np.abs(stored.astype(np.float64) - wide).max(axis=0)
    spread = wide.max(axis=0) - wide.min(axis=0)
    assert (error <= spread / 2 ** (n_bits + 1)).all(), (error / spread).max()


def layer_of(root: Path, layer: str = "conv0") -> Any:
    return open_latents(root).split("pool2", "train")[layer]


BLOSC = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")

CHANGES: dict[str, Callable[[NDArray[np.float32]], Any]] = {
    "mean 1e3": lambda v: offset(v, 1e3),
    "mean 1e4": offset,
    "mean -1e6": lambda v: offset(v, -1e6),
    "one feature": lambda v: offset(v[:, 2, 1, 1]),
    "beyond float16": lambda v: np.multiply(v, 1e6, out=v),
    "one value beyond": lambda v: v.__setitem__((33, 1, 0, 1), 65520),
    "large": lambda v: np.multiply(v, np.float32(1e35), out=v),
    "subnormal": lambda v: np.multiply(v, np.float32(1e-8), out=v),
    "tiny": lambda v: np.multiply(v, np.float32(1e-30), out=v),
    "tiny feature": lambda v: np.multiply(v[:, 0, 0, 0], np.float32(1e-9), out=v[:, 0, 0, 0]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_store__what_float16_would_ruin_is_float32_and_says_why(root: Path, name: str) -> None:
    split = split_of(CHANGES[name])
    assert split.write(root, shard_rows=64).problems == []
    found, exact = layer_of(root), split.latents["pool2"]["conv0"]
    assert found.array.dtype == found.numpy().dtype == np.float32
    assert repr(found) == "<LatentArray conv0 (40, 4, 2, 2) float32>"
    check_bits(exact, found.numpy())
    wide = found.numpy().astype(np.float64)
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.std, wide.std(axis=0), rtol=1e-5)
    said = dict(found.array.attrs)
    assert 10 <= said["mantissa_bits"] <= 23
    beyond = "beyond" in name or name == "large"
    assert ("65504" if beyond else "8 bits of a feature's spread") in said["float32_because"]
    group = json.loads((root / "pool2/train/conv0/zarr.json").read_bytes())["attributes"]
    assert group == {"layer": "conv0", **said}
    mantissas = np.frexp(wide)[0] * 2.0 ** (said["mantissa_bits"] + 1)
    np.testing.assert_array_equal(mantissas, np.round(mantissas), "what is not kept is zero")
    check_whole(root)
    assert layer_of(root, "fc").array.dtype == np.float16


def test_store__an_ordinary_layer_is_float16_in_the_bytes_that_zarr_would_write(
    root: Path, tmp_path: Path
) -> None:
    split = split_of(offset)
    split.latents["pool2"]["fc"][:, 1] = 0.1  # constant
    split.latents["pool2"]["fc"][:, 2] = -40000 + 9000 * np.sin(np.arange(40))
    split.latents["pool2"]["fc"][:, 3] = np.float32(0.1) * (1 + np.arange(40) % 2 * np.float32(2e-7))
    split.write(root, shard_rows=64)
    array = layer_of(root, "fc").array
    assert dict(array.attrs) == {}
    assert array.dtype == np.float16
    peer = zarr.open_group(tmp_path / "peer", mode="w").create_array(
        "latent",
        shape=array.shape,
        dtype=array.dtype,
        chunks=array.chunks,
        shards=array.shards,
        compressors=array.compressors,
        fill_value=np.nan,
        dimension_names=("sample", "feature"),
    )
    peer[...] = split.latents["pool2"]["fc"].astype(np.float16)
    assert contents(root / "pool2/train/fc/latent") == contents(tmp_path / "peer/latent")


@settings(max_examples=60, deadline=None)
@given(
    mean=st.floats(-1e30, 1e30),
    scale=st.floats(-40, 30),
    n_bits=st.integers(2, 10),
    seed=st.integers(0, 9),
    n=st.integers(2, 80),
)
def test_precision__keeps_all_but_two_of_the_bits_of_every_range(
    mean: float, scale: float, n_bits: int, seed: int, n: int
) -> None:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((n, 6)) * 10.0 ** generator.uniform(scale - 3, scale, 6)
    values[:, :3] += mean
    exact = values.astype(np.float32)
    spread = exact.max(axis=0).astype(np.float64) - exact.min(axis=0)
    varies = spread > 2.0**-20 * np.abs(exact).max(axis=0)
    precision = choose_precision(Extent.of(exact), n_bits)
    stored = precision.round(exact.copy())
    assert np.isfinite(stored).all()
    check_bits(exact[:, varies], stored[:, varies], n_bits - 2)


# Surprises


def late(first: Callable[..., Any], then: Callable[..., Any]) -> Callable[[NDArray[np.float32]], None]:
    def change(values: NDArray[np.float32]) -> None:
        first(values[:8])
        then(values[8:])

    return change


def nothing(values: NDArray[np.float32]) -> None:
    pass


def constant(values: NDArray[np.float32]) -> None:
    values[...] = 300


def growing(values: NDArray[np.float32]) -> None:
    """The range is just enough for the first shard, then the power of two moves on."""
    values[...] = 7 + (np.arange(len(values)) / len(values))[:, None, None, None] * 1.2


SURPRISES = {
    "offset later": late(nothing, offset),
    "offset first": late(offset, nothing),
    "constant first": late(constant, lambda v: np.add(v / 600, 300, out=v)),
    "beyond later": late(nothing, lambda v: np.multiply(v, 1e4, out=v)),
    "beyond at last": lambda v: v.__setitem__((39, 1, 0, 1), 1e6),
    "more offset": late(offset, lambda v: offset(v, 1e6)),
    "growing": growing,
    "one row far off": lambda v: (offset(v), v.__setitem__(3, 0)),
}


@pytest.mark.parametrize("name", SURPRISES)
def test_writer__a_later_shard_may_show_that_float16_does_not_do(root: Path, name: str) -> None:
    """In shards of 8: each is as exact as if it were alone, and so is the whole."""
    split = split_of(SURPRISES[name])
    split.write(root, shard_rows=8)
    found, exact = layer_of(root), split.latents["pool2"]["conv0"]
    assert found.array.dtype == np.float32
    assert found.array.shards == (8, 4, 2, 2)
    stored = found.numpy()
    check_bits(exact, stored)
    for start in range(0, 40, 8):
        shard = exact[start : start + 8]
        if np.ptp(shard) > 0:
            check_bits(shard, stored[start : start + 8], 5)
    wide = stored.astype(np.float64)
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-6, atol=1e-6 * wide.std())
    np.testing.assert_allclose(found.std, wide.std(axis=0), rtol=1e-5)
    check_whole(root)
    committed = log_of(root).read(root.name)
    assert committed.files.keys() == contents(root).keys()
    assert committed.n_rows == {"pool2/train/conv0": 40, "pool2/train/fc": 40}
    assert layer_of(root, "fc").array.dtype == np.float16


@pytest.mark.parametrize("name", ["offset later", "offset first", "more offset"])
@pytest.mark.parametrize("killed_at", [8, 21, 39])
def test_writer__goes_on_in_float32_where_it_was_killed(
    tmp_path: Path, root: Path, name: str, killed_at: int
) -> None:
    split = split_of(SURPRISES[name])
    undisturbed = tmp_path / "undisturbed" / "latents.zarr"
    split.write(undisturbed, shard_rows=8)
    interrupted(root, split, killed_at)
    assert split.open(root).missing == [(killed_at // 8 * 8, 40)]
    split.write(root, batch_size=5)
    assert contents(root) == contents(undisturbed)
    assert log_of(root).read(root.name) == log_of(undisturbed).read(undisturbed.name)


class Killed(BaseException):
    """As a signal that nothing catches."""


@pytest.mark.parametrize("mean", [1e4, 3e5])
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize(("first", "step"), [(5, 17), pytest.param(0, 1, marks=pytest.mark.long)])
def test_writer__killed_at_any_operation_ends_with_the_same_bytes(
    tmp_path: Path, mean: float, lost: bool, first: int, step: int
) -> None:
    """Killed, or without power, before each write, rename and removal of the shard that makes it float32."""
    split = Split(24, {"pool2": {"fc": (3,)}})
    values = split.latents["pool2"]["fc"]
    values[...] = np.float32(mean) * (np.arange(24) // 8)[:, None]
    values += np.random.default_rng(1).normal(0, 1, values.shape).astype(np.float32)
    states: dict[int, Any] = {}

    def before(number: int, kind: str, path: Path) -> None:
        tree = disk.synced_files() if lost else disk.files()
        if tree not in states.values():
            states[number] = tree

    folder = tmp_path / "whole"
    folder.mkdir()
    disk = Disk(folder, before)
    with disk.installed():
        split.write(folder / "latents.zarr", shard_rows=8)
    expected = contents(folder / "latents.zarr")
    assert layer_of(folder / "latents.zarr", "fc").array.dtype == np.float32
    for number, tree in list(states.items())[first::step]:
        again = tmp_path / str(number)
        lay_out(tree, again)
        split.write(again / "latents.zarr", shard_rows=8)
        found = {k: v for k, v in contents(again / "latents.zarr").items() if not k.endswith(".partial")}
        assert found == expected, f"killed before operation {number}"
        assert log_of(again / "latents.zarr").read("latents.zarr").files.keys() == expected.keys()


@pytest.mark.parametrize("first", ["ordinary", "offset"])
def test_writer__of_unknown_length_takes_surprises(root: Path, first: str) -> None:
    split = split_of(SURPRISES["offset later" if first == "ordinary" else "offset first"], 29)
    root.parent.mkdir(exist_ok=True)
    attributes = {"format_version": 1, "layers": ["conv0", "fc"]}
    with LatentWriter(
        Folder(root),
        log_of(root),
        attributes=attributes,
        source={},
        shapes={LatentsKey("2"): SHAPES["pool2"]},
        split="train",
        shard_rows=8,
    ) as writer:
        for start in range(0, 29, 5):
            split.append(writer, start, min(29, start + 5))
        writer.finish(split.labels, split.sample_ids)
    found = layer_of(root)
    assert (found.shape, found.array.dtype) == ((29, 4, 2, 2), np.float32)
    check_bits(split.latents["pool2"]["conv0"][8:], found.numpy()[8:], 5)
    check_bits(split.latents["pool2"]["conv0"][:8], found.numpy()[:8], 5)
    check_whole(root)


# Damage, rounding, other readers


@pytest.mark.parametrize("key", ["latent/c/1/0/0/0", "latent/zarr.json", "zarr.json", "mean/c/0/0/0"])
@pytest.mark.parametrize("name", ["offset later", "more offset"])
def test_writer__mends_a_layer_in_float32_to_the_same_bytes(root: Path, key: str, name: str) -> None:
    split = split_of(SURPRISES[name])
    split.write(root, shard_rows=8)
    whole = contents(root)
    (root / "pool2/train/conv0" / key).unlink()
    assert split.open(root).missing == ([(8, 16)] if "/c/1/" in key else [])
    split.write(root, shard_rows=8)
    assert contents(root) == whole
    check_whole(root)


def test_writer__a_layer_that_nothing_says_the_dtype_of_is_written_anew(root: Path) -> None:
    split = split_of(offset)
    split.write(root, shard_rows=8)
    whole = contents(root)
    for key in ("zarr.json", "latent/zarr.json"):
        (root / "pool2/train/conv0" / key).unlink()
    assert split.open(root).missing == [(0, 40)]
    split.write(root, shard_rows=8)
    assert contents(root) == whole


@pytest.mark.parametrize("n_bits", [1, 4, 9])
def test_store__few_mantissa_bits_are_counted_from_the_spread(root: Path, n_bits: int) -> None:
    split = split_of(offset)
    split.write(root, shard_rows=8, mantissa_bits=n_bits)
    found = layer_of(root)
    assert found.array.dtype == np.float32
    check_bits(split.latents["pool2"]["conv0"], found.numpy(), n_bits)
    assert n_bits < found.array.attrs["mantissa_bits"] < 23
    assert layer_of(root, "fc").array.dtype == np.float16
    assert zarr.open_group(root, mode="r")["pool2/train"].attrs["mantissa_bits"] == n_bits


def test_store__what_rounds_beyond_float16_is_float32(root: Path) -> None:
    split = Split(40, {"pool2": {"fc": (5,)}})
    split.latents["pool2"]["fc"][3, 1] = -65504
    assert split.write(root, mantissa_bits=7).problems == []
    found = layer_of(root, "fc")
    assert (found.array.dtype, found.numpy()[3, 1]) == (np.float32, -65536)


def test_problems__are_told_of_a_layer_in_float32_and_do_not_make_one(root: Path) -> None:
    split = split_of(offset)
    split.latents["pool2"]["conv0"][11, 0, 0, 0] = np.nan
    split.latents["pool2"]["fc"][12, :2] = np.inf, np.nan
    writer = split.write(root, shard_rows=8)
    assert {(p.layer, p.n_non_finite) for p in writer.problems} == {("conv0", 1), ("fc", 2)}
    found = layer_of(root)
    assert found.array.dtype == np.float32
    assert np.isnan(found.numpy()[11, 0, 0, 0])
    assert layer_of(root, "fc").array.dtype == np.float16
    check_bits(split.latents["pool2"]["conv0"][:, 1:], found.numpy()[:, 1:])


def test_store__a_layer_in_float32_opens_in_zarr_dask_and_xarray(root: Path) -> None:
    split = split_of(SURPRISES["offset later"])
    split.write(root, shard_rows=8)
    stored = layer_of(root).numpy()
    plain = zarr.open_group(root, mode="r", use_consolidated=False)
    np.testing.assert_array_equal(plain["pool2/train/conv0/latent"][:], stored)
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_array_equal(layer_of(root).dask(1)[3:30:5].compute(), stored[3:30:5])
    with xr.open_datatree(root, engine="zarr", consolidated=False, chunks={}) as tree:
        for layer, dtype in (("conv0", np.float32), ("fc", np.float16)):
            assert tree[f"pool2/train/{layer}"]["latent"].dtype == dtype
        np.testing.assert_array_equal(tree["pool2/train/conv0"]["latent"], stored)
    rows = layer_of(root).rows()
    np.testing.assert_array_equal(rows.read(3, 31), stored.reshape(40, -1)[3:31])


def test_encoded_ratio__is_of_what_a_store_would_hold() -> None:
    values = np.random.default_rng(0).standard_normal((512, 64)).astype(np.float32)
    ordinary, wide = encoded_ratio(values), encoded_ratio(values + np.float32(1e4))
    peer = zarr.create_array(
        {}, shape=values.shape, dtype=np.float16, chunks=values.shape, compressors=BLOSC, fill_value=np.nan
    )
    peer[...] = values.astype(np.float16)
    assert ordinary == pytest.approx(peer.nbytes_stored() / peer.nbytes, rel=0.05)
    assert 0.5 < wide < 1, "what all values have in common takes next to nothing"
