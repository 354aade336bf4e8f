"""Files of features: read block by block as their own libraries wrote them, and refused in one line."""

import json
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_kinds import KINDS, write_features
from numpy.typing import NDArray

from satstore.errors import SatstoreError
from satstore.storage.feature_files import FeatureFile, open_features

ROWS = 240


@pytest.fixture
def features() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(ROWS, 12)).astype(np.float32)


def read(layer: FeatureFile, step: int = 64) -> NDArray[Any]:
    n_rows = layer.shape[0]
    return np.concatenate([layer.read(start, min(start + step, n_rows)) for start in range(0, n_rows, step)])


def read_all(places: Sequence[Path | str]) -> None:
    with open_features(places) as layers:
        for layer in layers.values():
            read(layer)


def refusal(*places: Path | str) -> str:
    """Return the error of opening places and reading all of them, which has one line."""
    with pytest.raises(SatstoreError) as refused:
        read_all(places)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_features__are_read_in_blocks_as_they_were_written(
    kind: str, features: NDArray[np.float32], tmp_path: Path
) -> None:
    path = write_features(tmp_path, kind, features)
    with open_features([path]) as layers:
        layer = layers["a"]
        assert list(layers) == ["a"]
        assert layer.shape == (ROWS, 12)
        np.testing.assert_array_equal(layer.read(0, 5), features[:5])
        np.testing.assert_array_equal(read(layer), features)
        np.testing.assert_array_equal(layer.read(100, 101), features[100:101])


@pytest.mark.parametrize("kind", ["npy", "deflated npz", "safetensors", "pt", "zarr", "hdf5"])
def test_features__of_tokens_and_maps_keep_their_axes(kind: str, tmp_path: Path) -> None:
    maps = np.arange(10 * 3 * 4 * 5, dtype=np.float32).reshape(10, 3, 4, 5)
    with open_features([write_features(tmp_path, kind, maps)]) as layers:
        np.testing.assert_array_equal(read(layers["a"], 4), maps)


@pytest.mark.parametrize("dtype", ["f2", ">f4", "f8", ">f8", "u1", "i8", "?"])
def test_features__become_float32_or_stay_float64(dtype: str, tmp_path: Path) -> None:
    values = (np.arange(30).reshape(10, 3) % 7).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    with open_features([tmp_path / "a.npy"]) as layers:
        found = read(layers["a"])
    assert found.dtype == (np.float64 if dtype.endswith("f8") else np.float32)
    np.testing.assert_array_equal(found, values.astype(np.float64))


def test_features__of_bfloat16_are_those_that_torch_has(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensor = torch.linspace(-3, 3, 40).reshape(10, 4).bfloat16()
    save_file({"x": tensor}, tmp_path / "a.safetensors")
    torch.save(tensor, tmp_path / "b.pt")
    with open_features([tmp_path / "a.safetensors", tmp_path / "b.pt"]) as layers:
        for layer in layers.values():
            np.testing.assert_array_equal(read(layer), tensor.float().numpy())


def test_layers__are_all_arrays_of_a_file_and_all_files(
    features: NDArray[np.float32], tmp_path: Path
) -> None:
    np.savez(tmp_path / "many.npz", conv=features, fc=2 * features)
    np.save(tmp_path / "other.v2.npy", 3 * features)
    with open_features([tmp_path / "many.npz", tmp_path / "other.v2.npy"]) as layers:
        assert list(layers) == ["conv", "fc", "other.v2"]
        np.testing.assert_array_equal(read(layers["fc"]), 2 * features)
    with open_features([f"{tmp_path}/many.npz:fc"]) as layers:
        assert list(layers) == ["fc"]


def test_columns__that_may_be_labels_are_features_only_if_named(tmp_path: Path) -> None:
    import pandas as pd

    table = pd.DataFrame({"label": [1, 0, 1], "pixel0": [3, 4, 5], "pixel1": [6, 7, 8]}, index=[5, 6, 9])
    path = tmp_path / "t.parquet"
    table.to_parquet(path)
    assert "the column label among its numbers; name those that are features: " in refusal(path)
    table.astype({"label": float}).rename(columns={"label": "z"}).to_parquet(tmp_path / "u.parquet")
    assert "columns of double (z), int64 (pixel1) among its numbers" in refusal(tmp_path / "u.parquet")
    for place, exclude in ((f"{path}:pixel*", []), (str(path), [f"{path}:label"])):
        with open_features([place], exclude=exclude) as layers:
            np.testing.assert_array_equal(read(layers["t"]), table[["pixel0", "pixel1"]])


def test_columns__with_gaps_or_lists_of_several_lengths_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"a": [1.0, None, 2.0], "b": [1.0, 2.0, 3.0]}), tmp_path / "gap.parquet")
    assert "column a has 1 cells without a value" in refusal(tmp_path / "gap.parquet")
    parquet.write_table(pa.table({"v": [[1.0, 2.0], [3.0]]}), tmp_path / "lists.parquet")
    assert "row 1 of column v has 1 values, the first 2" in refusal(tmp_path / "lists.parquet")
    parquet.write_table(pa.table({"t": ["x", "y"]}), tmp_path / "text.parquet")
    assert "has no columns of numbers or lists of them; its columns are t" in refusal(
        tmp_path / "text.parquet"
    )


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        (
            {"x": np.zeros((4, 2)), "y": np.zeros(4)},
            "has the arrays x (4 × 2, float64), y (4, float64); name one",
        ),
        ({"x": np.zeros((4, 2)), "y": np.zeros((5, 2))}, "name one: "),
        ({"x": np.zeros(4)}, "has shape (4,); expected features (sample, feature)"),
        ({"x": np.zeros((0, 3))}, "has shape (0, 3); expected features"),
        ({"x": np.zeros((4, 3), complex)}, "holds complex128; expected numbers"),
        ({"x": np.array([["a", "b"]])}, "holds <U1; expected numbers"),
        ({"x": np.zeros((4, 7, 7, 9))}, "maps of 7 × 7 × 9, whose channels seem to come last"),
        (
            {"x": np.asfortranarray(np.zeros((4, 3)))},
            "x is stored in Fortran order; save np.ascontiguousarray(x)",
        ),
        ({}, "holds no arrays"),
    ],
)
def test_arrays__that_are_no_features_are_refused(
    arrays: dict[str, NDArray[Any]], expected: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    assert expected in refusal(tmp_path / "a.npz")


def test_files__of_several_lengths_or_one_name_are_refused(tmp_path: Path) -> None:
    for folder, n_rows in (("one", 4), ("two", 5)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / f"{folder}.npy", np.zeros((n_rows, 2)))
        np.save(tmp_path / folder / "same.npy", np.zeros((4, 2)))
    assert "4 rows, " in refusal(tmp_path / "one/one.npy", tmp_path / "two/two.npy")
    assert "are both called same; rename one" in refusal(tmp_path / "one/same.npy", tmp_path / "two/same.npy")
    assert "no file " in refusal(tmp_path / "missing.npy")
    assert "has no array 'y'; known are x" in refusal(f"{_npz_of_x(tmp_path)}:y")


def _npz_of_x(folder: Path) -> Path:
    np.savez(folder / "x.npz", x=np.zeros((4, 2)))
    return folder / "x.npz"


class Evil:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _pickled_npy(path: Path, evil: Evil) -> None:
    np.save(path, np.array([[evil]], dtype=object), allow_pickle=True)


def _pickled_npz(path: Path, evil: Evil) -> None:
    np.savez(path, x=np.array([[evil]], dtype=object))


def _pickled_pt(path: Path, evil: Evil) -> None:
    import torch

    torch.save({"x": evil}, path)


def _pickle(path: Path, evil: Evil) -> None:
    path.write_bytes(pickle.dumps(evil))


def _pickled_zarr(path: Path, evil: Evil) -> None:
    import zarr

    zarr.create_array(path, data=np.ones((4, 2), np.float32), zarr_format=2, compressors=None)
    metadata = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps(metadata | {"compressor": {"id": "pickle", "protocol": 5}}))
    (path / "0.0").write_bytes(pickle.dumps(evil))


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("a.npy", _pickled_npy, "holds Python objects, which are pickled"),
        ("a.npz", _pickled_npz, "holds Python objects, which are pickled"),
        ("a.pt", _pickled_pt, "is no file of tensors, and is not loaded (weights only)"),
        ("a.pkl", _pickle, "pickles of others are not read; save it by np.save or as safetensors"),
        ("a.npy", _pickle, "can't be read"),
        ("a.pt", _pickle, "is not loaded (weights only)"),
        ("a.zarr", _pickled_zarr, "can't be read: No Zarr data type found that matches"),
    ],
)
def test_pickles__run_nothing(
    name: str, write: Callable[[Path, Evil], None], expected: str, tmp_path: Path
) -> None:
    write(tmp_path / name, Evil(tmp_path / "owned"))
    assert expected in refusal(tmp_path / name)
    assert not (tmp_path / "owned").exists()


def test_claims__of_more_values_than_there_are_are_refused(tmp_path: Path) -> None:
    import torch

    header = np.lib.format.header_data_from_array_1_0(np.zeros((2, 2)))
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": (10**12, 4)})
        file.write(b"\0" * 64)
    assert "claims 32,000,000,000,000 bytes of values" in refusal(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as packed:
        packed.write(tmp_path / "a.npy", "x.npy")
    assert "compressed or encrypted in a way that NumPy has not" in refusal(tmp_path / "a.npz")
    torch.save(torch.zeros(1, 4).expand(10**12, 4), tmp_path / "a.pt")
    assert "claims 4,000,000,000,000 values where it holds fewer" in refusal(tmp_path / "a.pt")
    (tmp_path / "a.safetensors").write_bytes((10**12).to_bytes(8, "little") + b"{}")
    assert "can't be read" in refusal(tmp_path / "a.safetensors")


def test_claims__of_zarr_chunks_that_none_writes_are_refused(tmp_path: Path) -> None:
    import zarr

    zarr.create_array(tmp_path / "a.zarr", data=np.zeros((4, 2)), chunks=(2, 2))
    metadata = json.loads((tmp_path / "a.zarr/zarr.json").read_text())
    metadata["shape"] = metadata["chunk_grid"]["configuration"]["chunk_shape"] = [10**12, 2]
    (tmp_path / "a.zarr/zarr.json").write_text(json.dumps(metadata))
    assert "claims chunks of" in refusal(tmp_path / "a.zarr")


def test_hdf5__of_other_files_is_not_followed(tmp_path: Path) -> None:
    import h5py

    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.zeros((4, 2))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["x"] = h5py.ExternalLink(secret, "x")
    assert "holds no arrays" in refusal(tmp_path / "link.h5")
    assert "holds no arrays" in refusal(f"{tmp_path}/link.h5:x")
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("x", (4, 2), "f4", external=[(str(secret), 0, 32)])
    assert "x lies in other files, which are not read" in refusal(tmp_path / "raw.h5")


def test_files__that_are_cut_off_or_none_are_refused(features: NDArray[np.float32], tmp_path: Path) -> None:
    for kind in ("npy", "npz", "deflated npz", "safetensors", "pt", "parquet", "hdf5"):
        path = write_features(tmp_path, kind, features)
        path.write_bytes(path.read_bytes()[:-200])
        assert str(path) in refusal(path)
        path.write_bytes(b"")
        assert str(path) in refusal(path)
        path.unlink()
        os.mkfifo(path)
        assert "named pipe" in refusal(path)
        path.unlink()


@pytest.mark.parametrize("kind", ["npy", "npy by columns", "npz", "deflated npz"])
def test_memory__holds_a_block_and_not_the_file(kind: str, tmp_path: Path) -> None:
    path = write_features(tmp_path, kind, np.zeros((64_000, 64), np.float32))  # 16 MiB
    with open_features([path]) as layers:
        tracemalloc.start()
        try:
            for start in range(0, 64_000, 1000):
                layers["a"].read(start, start + 1000)  # 256 KiB
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 2 * 2**20
