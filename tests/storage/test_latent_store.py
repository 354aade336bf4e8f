"""Stores of latents: written by shards, read with satstore, zarr, xarray and dask, killed and damaged."""

import errno
import json
import math
import os
import shutil
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from splits import (
    ATTRIBUTES,
    LAYERS,
    SHAPES,
    SOURCE,
    Split,
    check_whole,
    contents,
    first_missing,
    interrupted,
    log_of,
)

from satstore.config.latent_keys import LatentsKey
from satstore.errors import ConfigError, CorruptError, MemoryLimitError, NotFoundError, UnknownNameError
from satstore.storage.commit_log import CommitLog
from satstore.storage.files import Digest, WriteError
from satstore.storage.zarr import choose_shard_rows, open_latents, plan_memory
from satstore.storage.zarr.layout import (
    CHUNK_BYTES,
    ENCODING_BYTES,
    SHARD_BYTES,
    choose_chunk_rows,
    encode_layer,
    shards_bytes,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "latents.zarr"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Split]]:
    """A store of both splits, which tests only read: 29 and 5 samples in shards of 8."""
    root = tmp_path_factory.mktemp("shared") / "latents.zarr"
    splits = {"train": Split(29), "eval": Split(5, seed=1)}
    for name, split in splits.items():
        split.write(root, split=name)
    return root, splits


# Round trips


def check_equal(root: Path, split: Split, name: str) -> None:
    store = open_latents(root)
    assert store.poolings == sorted(split.shapes)
    for pooling, layers in split.shapes.items():
        found = store.split(pooling, name)
        np.testing.assert_array_equal(found.labels, split.labels)
        np.testing.assert_array_equal(found.sample_ids, split.sample_ids)
        assert list(found) == [layer for layer in LAYERS if layer in layers]
        for layer, latents in found.items():
            expected = split.stored(pooling, layer)
            assert latents.layer == layer
            assert latents.shape == expected.shape
            assert latents.n_features == expected[0].size
            assert latents.numpy().dtype == np.float16
            np.testing.assert_array_equal(latents.numpy(), expected)
            exact = expected.astype(np.float64)
            np.testing.assert_allclose(latents.mean, exact.mean(axis=0), rtol=1e-6, atol=1e-5)
            np.testing.assert_allclose(latents.std, exact.std(axis=0), rtol=1e-6, atol=1e-6)
            assert latents.mean.dtype == latents.std.dtype == np.float32


def test_store__gives_back_what_was_written_rounded_to_float16(
    shared: tuple[Path, dict[str, Split]],
) -> None:
    root, splits = shared
    for name, split in splits.items():
        check_equal(root, split, name)
        for pooling in SHAPES:
            check_whole(root, pooling, name)


@settings(max_examples=12, deadline=None)
@given(
    n_samples=st.integers(1, 40),
    batch_size=st.integers(1, 45),
    shard_rows=st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
)
@example(n_samples=16, batch_size=8, shard_rows=8)
@example(n_samples=17, batch_size=40, shard_rows=4)
def test_store__batches_need_not_divide_shards(
    tmp_path_factory: pytest.TempPathFactory, n_samples: int, batch_size: int, shard_rows: int
) -> None:
    root = tmp_path_factory.mktemp("sizes") / "latents.zarr"
    shapes = {"pool1": {"conv0": (2, 1, 1), "fc": (3,)}}
    split = Split(n_samples, shapes, seed=n_samples)
    writer = split.write(root, batch_size, shard_rows=shard_rows)
    assert writer.problems == []
    check_equal(root, split, "train")
    check_whole(root, "pool1")
    assert log_of(root).read(root.name).n_rows == {
        "pool1/train/conv0": n_samples,
        "pool1/train/fc": n_samples,
    }
    shutil.rmtree(root.parent)


def test_store__takes_any_floating_type(root: Path) -> None:
    split = Split(9)
    for pooling, dtype in (("pool2", np.float64), ("full", np.float16)):
        for layer, values in split.latents[pooling].items():
            split.latents[pooling][layer] = values.astype(dtype)  # type: ignore[assignment]
    split.write(root)
    check_equal(root, split, "train")


def test_store__says_of_itself_what_it_is(shared: tuple[Path, dict[str, Split]]) -> None:
    root, _ = shared
    store = open_latents(str(root))
    assert store.attributes == ATTRIBUTES
    assert store.layers == LAYERS
    assert store.poolings == ["full", "pool2"]
    assert json.loads((root / "zarr.json").read_bytes())["attributes"] == ATTRIBUTES
    assert "full, pool2" in repr(store)
    assert repr(store.split("full", "eval")["fc"]) == "<LatentArray fc (5, 5) float16>"


def test_store__names_what_it_has_not(shared: tuple[Path, dict[str, Split]], tmp_path: Path) -> None:
    root, _ = shared
    store = open_latents(root)
    with pytest.raises(UnknownNameError, match="no latents 'pool3/train'; did you mean 'pool2/train'"):
        store.split("pool3", "train")
    split = store.split("pool2", "train")
    with pytest.raises(UnknownNameError, match="no latents of a layer 'conv1'; did you mean 'conv0'"):
        split["conv1"]
    assert "conv1" not in split
    assert "conv0" in split
    with pytest.raises(NotFoundError, match="no store at"):
        open_latents(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"zarr_format": 3, "node_type": "group", "attributes": {"format_version": 2}}', "format version 2"),
        ('{"zarr_format": 3, "node_type": "group", "attributes": {}}', "format version None"),
        ('{"zarr_format": 3, "node', "can't be opened"),
        ("", "can't be opened"),
        ("[]", "can't be opened"),
    ],
)
def test_store__refuses_what_it_does_not_know(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "zarr.json").write_text(content)
    with pytest.raises(CorruptError, match=message) as caught:
        open_latents(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_store__pixelwise_has_its_features_last(root: Path) -> None:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {"pixelwise": {"conv0": (7, 6, 4)}}
    split = Split(29, shapes)
    split.write(root)
    check_equal(root, split, "train")
    latents = open_latents(root).split("pixelwise", "train")["conv0"]
    assert latents.array.metadata.dimension_names == ("sample", "y", "x", "channel")  # type: ignore[union-attr]
    assert latents.array.chunks[1:] == (7, 6, 4)
    assert latents.mean.shape == (7, 6, 4)


@pytest.mark.parametrize("n_bits", [1, 3, 7, 9])
def test_store__rounds_the_mantissa_to_the_nearest(root: Path, n_bits: int) -> None:
    split = Split(40, {"pool2": {"fc": (50,)}})
    split.latents["pool2"]["fc"][3, :4] = np.nan, np.inf, -40000, 0
    writer = split.write(root, mantissa_bits=n_bits)
    found = open_latents(root).split("pool2", "train")["fc"]
    exact = split.stored("pool2", "fc").astype(np.float64)
    step = 2.0 ** (np.floor(np.log2(np.abs(exact, where=exact != 0, out=np.ones_like(exact)))) - n_bits)
    with np.errstate(invalid="ignore"):
        expected = np.round(exact / step) * step  # numpy's round is to even, too
    expected[3, 1] = np.inf
    np.testing.assert_array_equal(found.numpy(), expected)
    assert zarr.open_group(root, mode="r")["pool2/train"].attrs["mantissa_bits"] == n_bits
    np.testing.assert_allclose(found.mean[4:], expected[:, 4:].mean(axis=0), rtol=1e-6, atol=1e-6)
    [problem] = writer.problems
    assert (problem.n_non_finite, problem.n_overflows) == (2, 0)
    assert found.array.dtype == np.float16


# Other readers


def test_store__is_plain_zarr(shared: tuple[Path, dict[str, Split]]) -> None:
    root, splits = shared
    group = zarr.open_group(root, mode="r", use_consolidated=False)
    for name, split in splits.items():
        for pooling in SHAPES:
            node = group[f"{pooling}/{name}"]
            np.testing.assert_array_equal(node["label"][:], split.labels)
            np.testing.assert_array_equal(node["sample_id"][:], split.sample_ids)
            assert dict(node.attrs) == {**SOURCE, "mantissa_bits": 10}
            for layer in LAYERS:
                assert node[layer].attrs["layer"] == layer
                np.testing.assert_array_equal(node[layer]["latent"][:], split.stored(pooling, layer))


def test_store__metadata_is_as_documented(shared: tuple[Path, dict[str, Split]]) -> None:
    """Read from the JSON itself: Zarr v3, names, NaN, shards of chunks of Blosc-lz4-bitshuffle, crc32c."""
    root, _ = shared
    arrays = {
        str(path.parent.relative_to(root)): content
        for path in root.rglob("zarr.json")
        if (content := json.loads(path.read_bytes()))["node_type"] == "array"
    }
    assert len(arrays) == 2 * 2 * (2 + 3 * 3)
    for name, content in arrays.items():
        assert content["zarr_format"] == 3
        kind = name.split("/")[-1]
        of_conv = "/fc/" not in name
        axes = ["channel", "y", "x"] if of_conv else ["feature"]
        dims, dtype, fill = {
            "label": (["sample"], "int64", -1),
            "sample_id": (["sample"], "int64", -1),
            "latent": (["sample", *axes], "float16", "NaN"),
            "mean": (axes, "float32", "NaN"),
            "std": (axes, "float32", "NaN"),
        }[kind]
        assert content["dimension_names"] == dims
        assert content["data_type"] == dtype
        assert content["fill_value"] == fill
        codecs = content["codecs"]
        if kind == "latent":
            [sharding] = codecs
            assert sharding["name"] == "sharding_indexed"
            assert content["chunk_grid"]["configuration"]["chunk_shape"][0] == 8
            codecs = sharding["configuration"]["codecs"]
            assert [c["name"] for c in sharding["configuration"]["index_codecs"]] == ["bytes", "crc32c"]
        assert [c["name"] for c in codecs] == ["bytes", "blosc", "crc32c"]
        blosc = codecs[1]["configuration"]
        assert (blosc["cname"], blosc["shuffle"]) == ("lz4", "bitshuffle")
    assert not any("consolidated_metadata" in json.loads(p.read_bytes()) for p in root.rglob("zarr.json"))


def test_store__opens_in_xarray(shared: tuple[Path, dict[str, Split]]) -> None:
    root, splits = shared
    with xr.open_datatree(root, engine="zarr", consolidated=False, chunks={}) as tree:
        assert tree.attrs["run_id"] == "run"
        for name, split in splits.items():
            node = tree[f"full/{name}"]
            np.testing.assert_array_equal(node["label"], split.labels)
            for layer in LAYERS:
                latent = node[layer]["latent"]
                assert latent.dims == (
                    ("sample", "feature") if layer == "fc" else ("sample", "channel", "y", "x")
                )
                np.testing.assert_array_equal(latent, split.stored("full", layer))
        conv = tree["full/train/conv0/latent"]
        assert float(conv.mean()) == pytest.approx(
            splits["train"].stored("full", "conv0").astype(np.float64).mean(), rel=1e-2
        )


def test_store__opens_in_dask_in_blocks_of_whole_chunks(root: Path) -> None:
    """Chunks of 4 samples in shards of 16: a row of 512 kB."""
    shapes = {"full": {"conv0": (64, 64, 64)}}
    split = Split(37, shapes)
    split.write(root, shard_rows=16)
    latents = open_latents(root).split("full", "train")["conv0"]
    assert latents.array.chunks == (4, 64, 64, 64)
    assert latents.array.shards == (16, 64, 64, 64)
    row_bytes = 64**3 * 2
    expected = split.stored("full", "conv0")
    for chunk_bytes, rows in ((1, 4), (4 * row_bytes, 4), (11 * row_bytes, 8), (64 * 2**20, 37)):
        array = latents.dask(chunk_bytes)
        assert array.chunks[0][0] == rows
        assert sum(array.chunks[0]) == 37
        assert all(n % 4 == 0 for n in array.chunks[0][:-1])
        assert array.chunks[1:] == ((64,), (64,), (64,))
        with dask.config.set(scheduler="synchronous"):
            np.testing.assert_array_equal(array[3:30:5].compute(), expected[3:30:5])


# Killed and gone on with


@pytest.mark.parametrize(
    "killed_at", [0, 9, 28, *(pytest.param(n, marks=pytest.mark.long) for n in (3, 8, 16, 27))]
)
def test_writer__goes_on_after_the_last_committed_shard(tmp_path: Path, root: Path, killed_at: int) -> None:
    split = Split(29)
    undisturbed = tmp_path / "undisturbed" / "latents.zarr"
    split.write(undisturbed)

    interrupted(root, split, killed_at)
    writer = split.open(root)
    assert first_missing(writer) == killed_at // 8 * 8
    split.write(root, batch_size=5)
    assert contents(root) == contents(undisturbed)
    assert log_of(root).read(root.name) == log_of(undisturbed).read(undisturbed.name)
    check_whole(root)


def test_writer__killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path, root: Path) -> None:
    split = Split(29)
    undisturbed = tmp_path / "undisturbed" / "latents.zarr"
    split.write(undisturbed, split="eval")
    for n_rows in (0, 5, 9, 9, 20, 27):
        interrupted(root, split, n_rows, split="eval")
    split.write(root, split="eval")
    assert contents(root) == contents(undisturbed)


def test_writer__killed_while_writing_a_shard_redoes_it(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second shard is on disk for some layers, and garbage for one, but was never committed."""
    split = Split(29)
    undisturbed = tmp_path / "undisturbed" / "latents.zarr"
    split.write(undisturbed)

    writer = interrupted(root, split, 15)
    with monkeypatch.context() as context:
        context.setattr(CommitLog, "append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        split.append(writer, 15, 16)
        with pytest.raises(KeyboardInterrupt):
            writer.drain()
    shard = root / "pool2/train/conv0/latent/c/1/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-3])
    (shard.parent / ".0.12345678.partial").write_bytes(b"half")
    split.write(root)
    assert contents(root) == contents(undisturbed)


def test_writer__a_whole_split_is_left_alone(root: Path) -> None:
    split = Split(29)
    split.write(root)
    before, log = contents(root), log_of(root).path.read_bytes()
    writer = split.open(root)
    assert first_missing(writer) == 29
    writer.close()
    assert contents(root) == before
    assert log_of(root).path.read_bytes() == log


def test_writer__keeps_the_shards_of_a_store_that_it_goes_on_with(tmp_path: Path, root: Path) -> None:
    split = Split(29)
    undisturbed = tmp_path / "undisturbed" / "latents.zarr"
    split.write(undisturbed)
    interrupted(root, split, 9)
    split.write(root, shard_rows=4)
    assert contents(root) == contents(undisturbed)


def test_writer__of_another_source_starts_anew(tmp_path: Path, root: Path) -> None:
    old, new = Split(29), Split(29, seed=5)
    source = {"checkpoint_sha256": "1" * 64}
    undisturbed = tmp_path / "undisturbed" / "latents.zarr"
    new.write(undisturbed, source=source)

    interrupted(root, old, 16)
    assert first_missing(new.open(root, source=source)) == 0
    assert first_missing(new.open(root)) == 0, "what was begun anew is gone for the old source, too"
    new.write(root, source=source)
    assert contents(root) == contents(undisturbed)
    assert dict(zarr.open_group(root, mode="r")["pool2/train"].attrs) == {**source, "mantissa_bits": 10}


def test_writer__a_layer_of_another_shape_is_written_anew(root: Path) -> None:
    split = Split(29)
    split.write(root)
    kept = contents(root / "pool2/train/conv0")
    split.latents["pool2"]["fc"] = split.latents["pool2"]["fc"][:, :4]
    split.shapes = SHAPES | {"pool2": SHAPES["pool2"] | {"fc": (4,)}}
    assert split.open(root).missing == [(0, 29)]
    split.write(root)
    check_equal(root, split, "train")
    assert contents(root / "pool2/train/conv0") == kept


def test_writer__goes_on_with_each_pooling_where_it_stopped(tmp_path: Path, root: Path) -> None:
    split = Split(29)
    for pooling, n_rows in (("pool2", 16), ("full", 8)):
        part = Split(29, {pooling: SHAPES[pooling]})
        part.latents = {pooling: split.latents[pooling]}
        part.labels, part.sample_ids = split.labels, split.sample_ids
        interrupted(root, part, n_rows)
    first = contents(root / "pool2/train/conv0/latent/c/0")
    assert split.open(root).missing == [(8, 29)]
    split.write(root)
    check_equal(root, split, "train")
    undisturbed = tmp_path / "undisturbed" / "latents.zarr"
    split.write(undisturbed)
    assert contents(root) == contents(undisturbed)
    assert contents(root / "pool2/train/conv0/latent/c/0") == first


def test_writer__adds_layers_to_a_pooling_without_writing_the_others(tmp_path: Path, root: Path) -> None:
    split = Split(29)
    undisturbed = tmp_path / "undisturbed" / "latents.zarr"
    split.write(undisturbed)
    some = Split(29)
    some.shapes = {"full": {"conv0": (4, 7, 7)}}
    some.write(root)
    times = {path: path.stat().st_mtime_ns for path in (root / "full").rglob("c/*") if path.is_file()}
    split.write(root, shard_rows=32)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert contents(root / "full") == contents(undisturbed / "full"), "in shards of the stored size"
    assert open_latents(root).split("pool2", "train")["fc"].array.shards == (32, 5)


def test_writer__refuses_other_labels_than_those_stored(root: Path) -> None:
    interrupted(root, Split(29), 16)
    with pytest.raises(CorruptError, match="label is not that of these 29 samples"):
        Split(29, seed=4).open(root)
    with pytest.raises(CorruptError, match="label is not that of these 40 samples; write it again with"):
        Split(40).open(root)


def test_writer__another_pooling_leaves_the_first_alone(root: Path) -> None:
    first, second = Split(29, {"pool2": SHAPES["pool2"]}), Split(29, {"full": SHAPES["full"]}, seed=3)
    first.write(root)
    before = contents(root / "pool2")
    second.write(root)
    assert contents(root / "pool2") == before
    for split in (first, second):
        for pooling in split.shapes:
            found = open_latents(root).split(pooling, "train")
            np.testing.assert_array_equal(found["fc"].numpy(), split.stored(pooling, "fc"))
            check_whole(root, pooling)


def test_writer__what_was_removed_from_the_log_is_written_again(root: Path) -> None:
    split = Split(29)
    split.write(root)
    log_of(root).remove(root.name, "pool2")
    assert first_missing(split.open(root)) == 0


def test_writer__brings_the_stores_attributes_up_to_date(root: Path) -> None:
    """A reader takes layers and their order from them."""
    split = Split(29, {"pool2": SHAPES["pool2"]})
    interrupted(root, split, 9, attributes=ATTRIBUTES | {"layers": ["fc"]})
    assert list(open_latents(root).split("pool2", "train")) == ["fc"]
    split.write(root)
    assert list(open_latents(root).split("pool2", "train")) == LAYERS
    committed = log_of(root).read(root.name)
    assert committed.files["zarr.json"] == Digest.of_file(root / "zarr.json")


@pytest.mark.parametrize("killed_at", [8, *(pytest.param(n, marks=pytest.mark.long) for n in (0, 29))])
def test_writer__commits_every_file_with_its_digest(root: Path, killed_at: int) -> None:
    split = Split(29)
    interrupted(root, split, killed_at)
    split.write(root)
    files = log_of(root).read(root.name).files
    assert files == {key: Digest.of(content) for key, content in contents(root).items()}


def test_writer__in_one_store_splits_are_committed_apart(root: Path) -> None:
    interrupted(root, Split(29), 16)
    Split(5).write(root, split="eval")
    assert log_of(root).read(root.name).n_rows == {
        f"{pooling}/{name}/{layer}": n_rows
        for pooling in SHAPES
        for name, n_rows in (("train", 16), ("eval", 5))
        for layer in LAYERS
    }


# Refusals


def test_writer__refuses_an_end_that_comes_too_early_or_too_late(root: Path) -> None:
    split = Split(29)
    writer = interrupted(root, split, 20)
    with pytest.raises(ConfigError, match=r"layer layer1\.0\.conv1: samples 16 to 28 were announced and did"):
        writer.close()
    with pytest.raises(ConfigError, match=r"layer layer1\.0\.conv1: samples 20 to 20 were left out"):
        split.append(writer, 21, 22)
    split.append(writer, 20, 28)
    batch = {p: {k: v[:2] for k, v in layers.items()} for p, layers in split.latents.items()}
    with pytest.raises(ConfigError, match="more samples came than the 29 announced"):
        writer.append(batch, 28)
    split.append(writer, 28, 29)
    writer.close()
    check_equal(root, split, "train")


def test_writer__never_broadcasts(root: Path) -> None:
    split = Split(29, {"pool2": {"conv0": (4, 2, 2), "fc": (5,)}})
    writer = split.open(root)
    batch = {LatentsKey("2"): {"conv0": split.latents["pool2"]["conv0"][:4], "fc": np.zeros((4, 1))}}
    with pytest.raises(ConfigError, match=r"layer fc: latents of shape \(1,\), expected \(5,\)"):
        writer.append(batch, 0)


def test_writer__names_the_disk_that_refuses(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was committed before stays, and is gone on with."""
    split = Split(29)
    writer = interrupted(root, split, 15)

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", fsync)
        split.append(writer, 15, 16)
        with pytest.raises(WriteError, match=f"{root}/.* can't be written: No space left on device"):
            split.append(writer, 16, 24)
    assert first_missing(split.open(root)) == 8
    split.write(root)
    check_equal(root, split, "train")
    assert not list(root.rglob("*.partial"))


# Damage


@pytest.mark.parametrize(
    "key",
    [
        "latent/c/1/0/0/0",
        "latent/c/3/0/0/0",
        "latent/zarr.json",
        "zarr.json",
        "mean/c/0/0/0",
        "std/zarr.json",
        "../label/c/0",
    ],
)
@pytest.mark.parametrize("how", ["deleted", "emptied", "truncated"])
def test_damage__files_missing_or_short_are_found(root: Path, key: str, how: str) -> None:
    split = Split(29, {"pool2": {"conv0": (4, 2, 2), "fc": (5,)}})
    split.write(root)
    check_whole(root)
    path = (root / "pool2/train/conv0" / key).resolve()
    size_bytes = path.stat().st_size
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "emptied" else path.read_bytes()[:-1])
    with pytest.raises(CorruptError) as caught:
        check_whole(root)
    found = {
        "deleted": "is committed but not there",
        "emptied": f"has 0 bytes, {size_bytes} were committed",
        "truncated": f"has {size_bytes - 1} bytes, {size_bytes} were committed",
    }[how]
    assert str(caught.value) == f"{path} {found}; extract again"


def test_damage__an_edited_shape_is_found(root: Path) -> None:
    Split(29).write(root)
    path = root / "pool2/train/fc/latent/zarr.json"
    text = path.read_text()
    edited = text.replace("29", "28", 1)
    assert edited != text
    path.write_text(edited)
    with pytest.raises(CorruptError, match="its metadata changed"):
        check_whole(root)


@pytest.mark.parametrize(
    "key",
    ["latent/c/1/0/0/0", "latent/zarr.json", "zarr.json", "mean/c/0/0/0", "std/zarr.json", "../label/c/0",
     "../zarr.json", "../../zarr.json", "../sample_id/zarr.json"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["deleted", "truncated"])
def test_writer__mends_what_is_damaged_and_nothing_else(root: Path, key: str, how: str) -> None:
    """From the rows of that shard only, in bytes equal to those before."""
    split = Split(29, {"pool2": {"conv0": (4, 2, 2), "fc": (5,)}})
    split.write(root)
    whole, log = contents(root), log_of(root).read(root.name)
    path = (root / "pool2/train/conv0" / key).resolve()
    mended = {path, root / "pool2/train/conv0/std/c/0/0/0"} if "mean" in key else {path}
    times = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and p not in mended}
    path.unlink() if how == "deleted" else path.write_bytes(path.read_bytes()[:-1])
    writer = split.open(root)
    assert writer.missing == ([(8, 16)] if key == "latent/c/1/0/0/0" else [])
    split.write(root, batch_size=3)
    assert contents(root) == whole
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert log_of(root).read(root.name) == log
    check_whole(root)


@settings(max_examples=30, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(place=0.0, bit=0)
@example(place=0.999999, bit=7)
def test_damage__a_flipped_bit_of_a_shard_is_an_error_on_reading(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    root = tmp_path_factory.getbasetemp() / "flipped" / "latents.zarr"
    if not root.exists():
        Split(29, {"full": {"conv0": (4, 7, 7)}}).write(root)
    path = root / "full/train/conv0/latent/c/1/0/0/0"
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[int(place * len(content))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        latents = open_latents(root).split("full", "train")["conv0"]
        with pytest.raises(Exception, match=r".+"):
            latents.numpy()
        with pytest.raises(Exception, match=r".+"), dask.config.set(scheduler="synchronous"):
            latents.dask().compute()
    finally:
        path.write_bytes(content)
    latents.numpy()


def test_damage__what_was_never_written_reads_as_nan(root: Path) -> None:
    interrupted(root, Split(29), 16)
    values = open_latents(root).split("pool2", "train")["conv0"].numpy()
    assert np.isfinite(values[:16]).all()
    assert np.isnan(values[16:]).all()
    assert np.isnan(open_latents(root).split("pool2", "train")["conv0"].mean).all()


# What can't be probed


def test_problems__name_layer_rows_and_counts(root: Path) -> None:
    """Batches of 7: the rows 7 to 13 hold the first bad values; the shard ends after row 7."""
    split = Split(29)
    split.latents["pool2"]["conv0"][9, :3, 0, 0] = np.nan, np.inf, -np.inf
    split.latents["pool2"]["conv0"][10, 0, 0, 0] = 7e4
    split.latents["pool2"]["conv0"][20] = np.nan
    split.latents["full"]["fc"] = split.latents["full"]["fc"].astype(np.float64)  # type: ignore[assignment]
    split.latents["full"]["fc"][28, 1:3] = -66000, 1e300
    writer = split.write(root, batch_size=7)
    found = {(str(p.key), p.layer): p for p in writer.problems}
    assert found.keys() == {("pool2", "conv0"), ("full", "fc")}
    conv, fc = found["pool2", "conv0"], found["full", "fc"]
    assert (conv.first_row, conv.last_row, conv.n_non_finite, conv.n_overflows) == (8, 14, 3, 0)
    assert (fc.first_row, fc.last_row, fc.n_non_finite, fc.n_overflows) == (28, 29, 0, 1)
    assert str(conv).startswith("layer conv0: 3 values are NaN or infinite in samples 8 to 13, pool2")
    assert str(fc).startswith("layer fc: 1 are beyond float32 (3.4e38) in samples 28 to 28, full")


def test_problems__stored_as_they_are_and_visible_in_the_moments(root: Path) -> None:
    split = Split(29, {"pool2": {"fc": (5,)}})
    split.latents["pool2"]["fc"][9, 1] = np.nan
    split.latents["pool2"]["fc"][11, 2] = -np.inf
    split.latents["pool2"]["fc"][12, 3] = 65504
    split.write(root)
    latents = open_latents(root).split("pool2", "train")["fc"]
    expected = split.stored("pool2", "fc")
    assert latents.array.dtype == np.float16
    np.testing.assert_array_equal(latents.numpy(), expected)
    assert np.isinf(latents.numpy()[11, 2])
    assert list(np.isfinite(latents.std)) == [True, False, False, True, True]
    exact = expected.astype(np.float64)
    np.testing.assert_allclose(latents.std[3:], exact[:, 3:].std(axis=0), rtol=1e-6)


def test_problems__are_told_after_going_on_too(root: Path) -> None:
    split = Split(29, {"pool2": {"fc": (5,), "conv0": (2, 1, 1)}})
    split.latents["pool2"]["fc"][9, :3] = np.nan, np.inf, np.nan
    interrupted(root, split, 17)
    writer = split.write(root)
    [problem] = writer.problems
    assert (problem.layer, problem.first_row, problem.last_row) == ("fc", 8, 16)
    assert (problem.n_non_finite, problem.n_overflows) == (3, 0)


def test_problems__large_means_lose_no_spread(root: Path) -> None:
    """E[x²] − mean² would lose it in float32; merging does not."""
    split = Split(64, {"pool2": {"fc": (3,)}})
    values = split.latents["pool2"]["fc"]
    values[:] = 30000 + 16 * (np.arange(64)[:, None] % 2) * np.array([1, 2, 0])
    split.write(root)
    latents = open_latents(root).split("pool2", "train")["fc"]
    np.testing.assert_array_equal(latents.mean, [30008, 30016, 30000])
    np.testing.assert_array_equal(latents.std, [8, 16, 0])


# Sizes


def test_choose_shard_rows__counts_by_hand() -> None:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {"a": {"x": (10,), "y": (2, 5, 5)}, "b": {"x": (20,)}}
    fixed = ENCODING_BYTES + 28 * 80
    assert shards_bytes(shapes, {"a": 64, "b": 64}) == 64 * 80 * (2 * 4 + 2 + 4) + fixed
    row = 80 * 14  # two shards of each as float32, one as float16, one as bytes
    assert choose_shard_rows(shapes, 10**6, row * 100 + fixed) == 64
    assert choose_shard_rows(shapes, 10**6, row * 64 + fixed) == 64
    assert choose_shard_rows(shapes, 10**6, row * 64 + fixed - 1) == 32
    assert choose_shard_rows(shapes, 10**6, row + fixed) == 1
    assert choose_shard_rows(shapes, 29, 10**9) == 32
    assert choose_shard_rows(shapes, 32, 10**9) == 32
    assert choose_shard_rows(shapes, 1, 10**9) == 1
    wide = {"full": {"conv": (64, 64, 64)}}
    assert choose_shard_rows(wide, 10**6, 10**12) == 256, "128 MiB of 512 KiB"


def test_plan_memory__adds_up_what_is_held_a_batch_and_the_shards() -> None:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {"a": {"x": (1000,), "y": (500,)}}
    held, batch = 300 * 2**20, 64 * 1500 * 8
    limit = held + batch + ENCODING_BYTES + 28 * 1500 + 100 * 14 * 1500
    rows, peak = plan_memory(shapes, 10**6, limit, held, 64)
    assert rows == 64
    assert peak == limit - 36 * 14 * 1500


def test_choose_shard_rows__refuses_a_memory_that_holds_no_sample() -> None:
    with pytest.raises(MemoryLimitError) as caught:
        choose_shard_rows({"full": {"x": (2**20,), "y": (7, 2**20)}}, 100, 2**20)
    assert str(caught.value) == (
        "writing latents in shards of 1 samples takes 368 MiB, the memory limit leaves 1 MiB beside model, "
        "data and one batch; raise --memory-limit by 368 MiB, or take a smaller pooling or fewer layers"
    )


def test_writer__refuses_stored_shards_that_do_not_fit_the_memory(root: Path) -> None:
    interrupted(root, Split(29), 16)
    with pytest.raises(
        MemoryLimitError, match=r"shards of 8 samples takes 32 MiB, .* write them anew with --over"
    ):
        Split(29).open(root, shard_rows=1, memory_bytes=2**20)
    assert Split(29).open(root, shard_rows=1, memory_bytes=2**26).missing == [(16, 29)]


@given(
    shapes=st.dictionaries(
        st.sampled_from(["pool1", "pool4", "full"]),
        st.dictionaries(
            st.text("abc", min_size=1, max_size=3),
            st.lists(st.integers(1, 512), min_size=1, max_size=3).map(tuple),
            min_size=1,
        ),
        min_size=1,
    ),
    n_samples=st.integers(1, 10**7),
    memory_bytes=st.integers(1, 2**36),
)
def test_choose_shard_rows__all_layers_fit_together(
    shapes: dict[str, dict[str, tuple[int, ...]]], n_samples: int, memory_bytes: int
) -> None:
    row_bytes = [2 * math.prod(shape) for layers in shapes.values() for shape in layers.values()]
    if shards_bytes(shapes, dict.fromkeys(shapes, 1)) > memory_bytes:
        with pytest.raises(MemoryLimitError):
            choose_shard_rows(shapes, n_samples, memory_bytes)
        return
    rows = choose_shard_rows(shapes, n_samples, memory_bytes)
    assert rows.bit_count() == 1, "a power of two"
    assert 2 * rows * sum(row_bytes) <= memory_bytes
    assert rows == 1 or rows * max(row_bytes) <= SHARD_BYTES
    assert rows < 2 * n_samples
    for layers in shapes.values():
        for shape in layers.values():
            chunk = choose_chunk_rows(shape, rows)
            assert rows % chunk == 0
            assert chunk == 1 or chunk * 2 * int(np.prod(shape)) <= CHUNK_BYTES


# Layer names as keys

ODD_NAMES = [
    "label",
    "sample_id",
    "zarr.json",
    "",
    ".",
    "..",
    ".hidden",
    "a/b",
    "../../etc/passwd",
    "/etc",
    "a\\b",
    "a\nb",
    "a b",
    "\x00",
    "%",
    "%6Cabel",
    "__x",
    "_x",
    "c",
    "~",
    "x" * 300,
    "x" * 299 + "y",
    "x" * 128,
    "x" * 129,
    "ü" * 100,
    "層.1",
    "🦆",
    "e\u0301",
    "\u00e9",
]


@pytest.mark.parametrize(
    "name", ["layer1.0.conv1", "features.0", "classifier.6", "fc", "_conv", "a-b", "x" * 128]
)
def test_encode_layer__leaves_plain_names(name: str) -> None:
    assert encode_layer(name) == name


def check_key(key: str) -> None:
    assert key
    assert key not in {".", "..", "label", "sample_id", "zarr.json"}
    assert not key.startswith((".", "__"))
    assert "/" not in key
    assert len(key.encode()) <= 255
    assert key.isascii()
    assert key.isprintable()


def test_encode_layer__odd_names_have_safe_keys_of_their_own() -> None:
    keys = [encode_layer(name) for name in ODD_NAMES]
    for key in keys:
        check_key(key)
    assert len(set(keys)) == len(ODD_NAMES)
    truncated = encode_layer("x" * 300)
    assert encode_layer(truncated) != truncated, "a layer that is named as another's key"


@given(st.lists(st.text(max_size=300) | st.text("._%~/labe", max_size=12), unique=True, max_size=20))
@example(["Conv1", "conv1", "CONV1"])
def test_encode_layer__is_injective(names: list[str]) -> None:
    keys = [encode_layer(name) for name in names]
    for key in keys:
        check_key(key)
    assert len(set(keys)) == len(names)
    again = [encode_layer(key) for key in keys]
    assert len(set(again)) == len(names)


def test_store__holds_layers_of_odd_names(root: Path) -> None:
    shapes = {"pool1": dict.fromkeys([*ODD_NAMES, "conv0"], (2,))}
    split = Split(5, shapes)
    split.write(root, attributes=ATTRIBUTES | {"layers": list(shapes["pool1"])})
    found = open_latents(root).split("pool1", "train")
    assert list(found) == list(shapes["pool1"])
    for name in shapes["pool1"]:
        assert found[name].layer == name
        np.testing.assert_array_equal(found[name].numpy(), split.stored("pool1", name))
    np.testing.assert_array_equal(found.labels, split.labels)
    assert sorted(p.name for p in root.parent.iterdir()) == ["commits.jsonl", "latents.zarr"]
    check_whole(root, "pool1")
    assert split.open(root, attributes=ATTRIBUTES | {"layers": list(shapes["pool1"])}).missing == []
    with xr.open_datatree(root, engine="zarr", consolidated=False, chunks={}) as tree:
        assert tree["pool1/train/%6Cabel"].attrs["layer"] == "label"
