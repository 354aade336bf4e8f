"""The store of what was computed: spectra, moments and probes, written again and again, and cut short."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from numpy.typing import NDArray

from satstore.errors import CorruptError, NotFoundError
from satstore.storage.commit_log import CommitLog
from satstore.storage.files import Digest
from satstore.storage.location import Folder
from satstore.storage.zarr import AnalysisStore, analysis_store
from satstore.storage.zarr.analysis_store import choose_chunks

LAYERS = {"layer1.0.conv1": 6, "conv0": 3, "label": 2}
"""Layer to features."""

N_EPOCHS = 4


@pytest.fixture
def store(tmp_path: Path) -> AnalysisStore:
    return AnalysisStore(tmp_path / "analysis.zarr", log_of(tmp_path))


def log_of(folder: Path) -> CommitLog:
    return CommitLog(folder / "commits.jsonl")


def make_spectra(epoch: int, split: str = "train") -> dict[str, NDArray[np.float64]]:
    generator = np.random.default_rng([epoch, len(split)])
    return {layer: np.sort(generator.random(n))[::-1].copy() for layer, n in LAYERS.items()}


def write_epochs(store: AnalysisStore, n_epochs: int, first: int = 0) -> None:
    for epoch in range(first, n_epochs):
        for split in ("train", "eval"):
            store.write_spectra(split, epoch, N_EPOCHS, make_spectra(epoch, split))


def make_probe(n_classes: int, n_features: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(seed)
    return {
        "coef": generator.normal(size=(n_classes, n_features)).astype(np.float32),
        "intercept": generator.normal(size=n_classes),
        "confusion": generator.integers(0, 99, (n_classes, n_classes)),
    }


def check_committed(store: AnalysisStore) -> None:
    """What is on disk and what the log says are the same, file by file."""
    on_disk = {
        path.relative_to(store.path).as_posix(): Digest.of_file(path)
        for path in store.path.rglob("*")
        if path.is_file()
    }
    assert log_of(store.path.parent).read(store.path.name).files == on_disk


# Spectra


def test_spectra__are_given_back_bit_for_bit(store: AnalysisStore) -> None:
    write_epochs(store, N_EPOCHS)
    for split in ("train", "eval"):
        found = AnalysisStore(store.path).spectra(split)
        assert found.keys() == LAYERS.keys()
        for layer, eigenvalues in found.items():
            assert eigenvalues.dtype == np.float64
            expected = [make_spectra(epoch, split)[layer] for epoch in range(N_EPOCHS)]
            np.testing.assert_array_equal(eigenvalues, expected)
    check_committed(store)


def test_spectra__come_in_an_order_that_does_not_depend_on_the_file_system(store: AnalysisStore) -> None:
    store.write_spectra("train", 0, 1, {f"layer{i}": np.ones(1) for i in (7, 3, 9, 1, 5, 2, 8)})
    assert list(store.spectra("train")) == [f"layer{i}" for i in (1, 2, 3, 5, 7, 8, 9)]


def test_spectra__of_epochs_still_to_come_are_nan(store: AnalysisStore) -> None:
    write_epochs(store, 2)
    for eigenvalues in store.spectra("train").values():
        assert eigenvalues.shape[0] == N_EPOCHS
        assert np.isfinite(eigenvalues[:2]).all()
        assert np.isnan(eigenvalues[2:]).all()


def test_spectra__of_a_layer_that_failed_are_nan(store: AnalysisStore) -> None:
    write_epochs(store, 1)
    store.write_spectra("train", 1, N_EPOCHS, make_spectra(1) | {"conv0": np.full(3, np.nan)})
    found = store.spectra("train")
    assert np.isnan(found["conv0"][1]).all()
    assert np.isfinite(found["conv0"][0]).all()
    assert np.isfinite(found["label"][1]).all()
    check_committed(store)


def test_spectra__a_repeated_epoch_replaces_the_first(store: AnalysisStore) -> None:
    """Training that goes on from an earlier checkpoint writes its epochs again."""
    write_epochs(store, 3)
    store.write_spectra("train", 2, N_EPOCHS, make_spectra(9) | {"conv0": np.full(3, np.nan)})
    found = store.spectra("train")
    np.testing.assert_array_equal(found["label"][2], make_spectra(9)["label"])
    np.testing.assert_array_equal(found["label"][1], make_spectra(1)["label"])
    assert np.isnan(found["conv0"][2]).all(), "no chunk of it is on disk any more"
    check_committed(store)


def test_finish_spectra__cuts_to_the_epochs_that_were_trained(store: AnalysisStore) -> None:
    write_epochs(store, 3)
    store.finish_spectra(2)
    for split in ("train", "eval"):
        for layer, eigenvalues in store.spectra(split).items():
            np.testing.assert_array_equal(
                eigenvalues, [make_spectra(epoch, split)[layer] for epoch in range(2)]
            )
    check_committed(store)
    log_of(store.path.parent).read(store.path.name).check(Folder(store.path), "spectra", "train again")


def test_finish_spectra__leaves_whole_ones_alone(store: AnalysisStore) -> None:
    write_epochs(store, N_EPOCHS)
    log = log_of(store.path.parent).read(store.path.name)
    store.finish_spectra(N_EPOCHS)
    assert log_of(store.path.parent).read(store.path.name) == log


def test_spectra__of_nothing_written_are_none(tmp_path: Path, store: AnalysisStore) -> None:
    assert store.spectra("train") == {}
    assert not store.path.exists(), "reading makes nothing"
    store.write_spectra("train", 0, 1, make_spectra(0))
    assert store.spectra("eval") == {}


# Moments and probes


def test_moments__are_given_back_bit_for_bit(store: AnalysisStore) -> None:
    generator = np.random.default_rng(0)
    moments = {
        layer: (generator.normal(size=n), generator.normal(size=(n, n))) for layer, n in LAYERS.items()
    }
    write_epochs(store, 1)
    store.write_moments("train", moments)
    for layer, (mean, covariance) in moments.items():
        found = AnalysisStore(store.path).moments("train", layer)
        np.testing.assert_array_equal(found[0], mean)
        np.testing.assert_array_equal(found[1], covariance)
        assert found[0].dtype == found[1].dtype == np.float64
    assert store.spectra("train").keys() == LAYERS.keys()
    check_committed(store)


def test_probe__is_given_back_and_replaced(store: AnalysisStore) -> None:
    """By one of another size, by one of the first size again, and by one without a finite coefficient."""
    for probe in (make_probe(3, 12), make_probe(5, 7, seed=1), make_probe(3, 12, seed=2)):
        store.write_probe("pool2", "layer1.0.conv1", probe)
        found = AnalysisStore(store.path).probe("pool2", "layer1.0.conv1")
        assert found.keys() == probe.keys()
        for name, values in probe.items():
            np.testing.assert_array_equal(found[name], values)
            assert found[name].dtype == values.dtype
        check_committed(store)
    store.write_probe("pool2", "layer1.0.conv1", probe | {"coef": np.full((3, 12), np.nan)})
    assert np.isnan(store.probe("pool2", "layer1.0.conv1")["coef"]).all()
    check_committed(store)


def test_probe__of_each_pooling_and_layer_is_its_own(store: AnalysisStore) -> None:
    places = [(pooling, layer) for pooling in ("pool1", "pool2") for layer in LAYERS]
    for seed, (pooling, layer) in enumerate(places):
        store.write_probe(pooling, layer, make_probe(3, 4, seed))
    for seed, (pooling, layer) in enumerate(places):
        np.testing.assert_array_equal(store.probe(pooling, layer)["coef"], make_probe(3, 4, seed)["coef"])


@pytest.mark.parametrize("layer", ["conv1", "../conv0", ""])
def test_store__names_what_it_has_not(store: AnalysisStore, layer: str) -> None:
    for _ in range(2):  # of a store that isn't there, and of one without such a layer
        with pytest.raises(
            NotFoundError, match=f"{store.path} has nothing of layer '{layer}' under probes/p"
        ):
            store.probe("pool2", layer)
        with pytest.raises(NotFoundError, match="under spectra/train"):
            store.moments("train", layer)
        store.write_probe("pool2", "conv0", make_probe(2, 2))
        store.write_spectra("train", 0, 1, make_spectra(0))


# The format


def test_store__metadata_is_as_documented(store: AnalysisStore) -> None:
    write_epochs(store, 2)
    store.write_moments("train", {"conv0": (np.zeros(3), np.eye(3))})
    store.write_probe("pool2", "conv0", make_probe(3, 12))
    expected = {
        "spectra/train/conv0/eigenvalues": (["epoch", "eigenvalue"], "float64", "NaN"),
        "spectra/train/conv0/mean": (["feature"], "float64", "NaN"),
        "spectra/train/conv0/covariance": (["feature", "other_feature"], "float64", "NaN"),
        "spectra/eval/%6Cabel/eigenvalues": (["epoch", "eigenvalue"], "float64", "NaN"),
        "probes/pool2/conv0/coef": (["class", "feature"], "float32", "NaN"),
        "probes/pool2/conv0/intercept": (["class"], "float64", "NaN"),
        "probes/pool2/conv0/confusion": (["true_class", "predicted_class"], "int64", -1),
    }
    for key, (dims, dtype, fill) in expected.items():
        content = json.loads((store.path / key / "zarr.json").read_bytes())
        assert content["zarr_format"] == 3
        assert content["dimension_names"] == dims
        assert content["data_type"] == dtype
        assert content["fill_value"] == fill
        assert [c["name"] for c in content["codecs"]] == ["bytes", "blosc", "crc32c"]
    root = json.loads((store.path / "zarr.json").read_bytes())
    assert root["attributes"] == {"format_version": 1}


def test_store__opens_in_xarray_and_zarr(store: AnalysisStore) -> None:
    write_epochs(store, 2)
    store.write_moments("train", {"conv0": (np.zeros(3), np.eye(3))})
    probe = make_probe(3, 12)
    store.write_probe("pool2", "layer1.0.conv1", probe)
    with xr.open_datatree(store.path, engine="zarr", consolidated=False, chunks={}) as tree:
        eigenvalues = tree["spectra/train/conv0/eigenvalues"]
        assert eigenvalues.dims == ("epoch", "eigenvalue")
        np.testing.assert_array_equal(eigenvalues[1], make_spectra(1)["conv0"])
        assert tree["spectra/train/%6Cabel"].attrs["layer"] == "label"
        found = tree["probes/pool2/layer1.0.conv1/confusion"]
        assert found.dims == ("true_class", "predicted_class")
        np.testing.assert_array_equal(found, probe["confusion"])
    group = zarr.open_group(store.path, mode="r", use_consolidated=False)
    np.testing.assert_array_equal(group["spectra/train/conv0/covariance"][:], np.eye(3))


def test_store__without_a_log_is_for_reading_only(store: AnalysisStore) -> None:
    reader = AnalysisStore(store.path)
    with pytest.raises(NotFoundError, match=f"{store.path} is open for reading only"):
        reader.write_probe("pool2", "conv0", make_probe(2, 2))
    with pytest.raises(NotFoundError, match="reading only"):
        reader.write_spectra("train", 0, 1, make_spectra(0))
    with pytest.raises(NotFoundError, match="reading only"):
        reader.finish_spectra(1)
    assert not store.path.exists()


def test_store__of_an_unknown_format_is_neither_read_nor_written(store: AnalysisStore) -> None:
    write_epochs(store, 1)
    metadata = store.path / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"format_version": 1', '"format_version": 2'))
    message = f"the store at {store.path} has format version 2; this one reads 1"
    with pytest.raises(CorruptError, match=message):
        store.spectra("train")
    with pytest.raises(CorruptError, match=message):
        store.moments("train", "conv0")
    with pytest.raises(CorruptError, match=message):
        store.write_probe("pool2", "conv0", make_probe(2, 2))


def test_store__a_write_that_failed_is_not_committed_and_can_be_repeated(
    store: AnalysisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after some layers: all of what is on disk in the end is committed, the groups too."""
    broken = make_spectra(0) | {"zz": np.zeros((2, 2, 2))}
    with pytest.raises(ValueError, match=r".+"):
        store.write_spectra("train", 0, N_EPOCHS, broken)
    log = log_of(store.path.parent)
    assert log.read(store.path.name).files == {}
    store.write_spectra("train", 0, N_EPOCHS, make_spectra(0))
    store.write_spectra("train", 1, N_EPOCHS, make_spectra(1))
    committed = log.read(store.path.name)
    committed.check(Folder(store.path), "spectra", "train again")
    for layer in ("layer1.0.conv1", "conv0", "%6Cabel"):
        for key in (f"{layer}/zarr.json", f"{layer}/eigenvalues/zarr.json", f"{layer}/eigenvalues/c/0/0"):
            assert f"spectra/train/{key}" in committed.files
    for key in ("zarr.json", "spectra/zarr.json", "spectra/train/zarr.json"):
        assert committed.files[key] == Digest.of_file(store.path / key)


def test_store__a_crash_between_change_and_commit_leaves_nothing_committed_and_wrong(
    store: AnalysisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_probe("pool2", "conv0", make_probe(3, 12))
    write_epochs(store, 3)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(CommitLog, "append", die)
        with pytest.raises(KeyboardInterrupt):
            store.write_probe("pool2", "conv0", make_probe(5, 7))
        with pytest.raises(KeyboardInterrupt):
            store.finish_spectra(2)
    committed = log_of(store.path.parent).read(store.path.name)
    assert committed.files
    for key, digest in committed.files.items():
        assert Digest.of_file(store.path / key) == digest
    assert not committed.under("probes/pool2/conv0/coef")


def test_store__damage_is_found(store: AnalysisStore) -> None:
    write_epochs(store, 2)
    committed = log_of(store.path.parent).read(store.path.name)
    committed.check(Folder(store.path), "spectra", "train again")
    (store.path / "spectra/train/conv0/eigenvalues/c/1/0").unlink()
    with pytest.raises(CorruptError, match=r"eigenvalues/c/1/0 is committed but not there; train again"):
        committed.check(Folder(store.path), "spectra", "train again")


def test_store__splits_large_arrays_into_chunks(
    store: AnalysisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A covariance of 16,384 features has 2 GiB, which the codec does not take at once."""
    monkeypatch.setattr("satstore.storage.zarr.analysis_store.CHUNK_BYTES", 1000)
    generator = np.random.default_rng(0)
    moments = {"wide": (generator.normal(size=40), generator.normal(size=(40, 40)))}
    store.write_spectra("train", 0, 1, {"wide": np.ones(40)})
    store.write_moments("train", moments)
    coef = generator.normal(size=(3, 2, 5, 70)).astype(np.float32)
    store.write_probe("pixelwise", "wide", {"coef": coef, "intercept": np.zeros((3, 2, 5))})
    check_committed(store)
    for found, expected in zip(store.moments("train", "wide"), moments["wide"], strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(store.probe("pixelwise", "wide")["coef"], coef)
    tree = xr.open_datatree(store.path, engine="zarr", consolidated=False, chunks={})
    np.testing.assert_array_equal(tree["probes/pixelwise/wide"]["coef"], coef)
    covariance = zarr.open_array(store.path / "spectra/train/wide/covariance", mode="r")
    assert np.prod(covariance.chunks) * 8 <= 1000
    assert covariance.nchunks > 1


@pytest.mark.parametrize(
    ("shape", "item_bytes", "expected"),
    [
        ((16384, 16384), 8, (512, 16384)),
        ((7, 7, 1000, 2048), 4, (1, 7, 1000, 2048)),
        ((56, 56, 1000, 2048), 4, (1, 8, 1000, 2048)),
        ((1000, 10**8), 4, (1, 2**24)),
        ((0, 3), 8, (1, 3)),
        ((6,), 8, (6,)),
    ],
)
def test_chunks__are_of_64_mebibytes_at_most(
    shape: tuple[int, ...], item_bytes: int, expected: tuple[int, ...]
) -> None:
    assert choose_chunks(shape, item_bytes) == expected
    assert np.prod(expected) * item_bytes <= 64 * 2**20


@pytest.mark.long
def test_store__takes_the_covariance_of_16400_features(store: AnalysisStore) -> None:
    n = 16_400
    covariance = np.zeros((n, n))
    covariance[-1, -1] = 3.0
    store.write_moments("train", {"wide": (np.zeros(n), covariance)})
    assert store.moments("train", "wide")[1][-1, -1] == 3.0


def test_moments__of_a_layer_stay_where_the_next_ones_can_not_be_written(
    store: AnalysisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = {layer: (np.ones(n), np.eye(n)) for layer, n in LAYERS.items()}
    written: list[str] = []

    def refuse_the_second(group: zarr.Group, name: str, *_: Any) -> None:
        written.append(str(group.attrs["layer"]))
        if len(set(written)) > 1:
            raise OSError("no room")
        put(group, name, *_)

    put = analysis_store._put
    monkeypatch.setattr(analysis_store, "_put", refuse_the_second)
    with pytest.raises(OSError, match="no room"):
        store.write_moments("train", moments)
    committed = log_of(store.path.parent).read(store.path.name)
    assert "spectra/train/layer1.0.conv1/covariance/c/0/0" in committed.files
    np.testing.assert_array_equal(store.moments("train", "layer1.0.conv1")[1], np.eye(6))
