"""Write an array as each kind of file that features are read from, by its own library."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def _npy(path: Path, array: Array) -> None:
    np.save(path, array)


def _npy_of_columns(path: Path, array: Array) -> None:
    np.save(path, np.asfortranarray(array))


def _npz(path: Path, array: Array) -> None:
    np.savez(path, whatever=array)


def _deflated_npz(path: Path, array: Array) -> None:
    np.savez_compressed(path, whatever=array)


def _safetensors(path: Path, array: Array) -> None:
    from safetensors.numpy import save_file

    save_file({"whatever": array}, path)


def _pt(path: Path, array: Array) -> None:
    import torch

    torch.save(torch.from_numpy(array), path)


def _parquet(path: Path, array: Array) -> None:
    import pandas as pd

    pd.DataFrame(array, columns=[f"f{n}" for n in range(array.shape[1])]).to_parquet(path, row_group_size=37)


def _parquet_of_lists(path: Path, array: Array) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    lists = pa.FixedSizeListArray.from_arrays(array.ravel(), array.shape[1])
    parquet.write_table(pa.table({"whatever": lists}), path, row_group_size=37)


def _zarr(path: Path, array: Array) -> None:
    import zarr

    zarr.create_array(path, data=array, chunks=(50, *array.shape[1:]))


def _old_zarr(path: Path, array: Array) -> None:
    import zarr

    zarr.open_group(path, mode="w", zarr_format=2).create_array("whatever", data=array)


def _hdf5(path: Path, array: Array) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("whatever", data=array, chunks=(10, *array.shape[1:]), compression="gzip")


KINDS: dict[str, tuple[str, Callable[[Path, Array], None]]] = {
    "npy": (".npy", _npy),
    "npy by columns": (".npy", _npy_of_columns),
    "npz": (".npz", _npz),
    "deflated npz": (".npz", _deflated_npz),
    "safetensors": (".safetensors", _safetensors),
    "pt": (".pt", _pt),
    "parquet": (".parquet", _parquet),
    "parquet of lists": (".parquet", _parquet_of_lists),
    "zarr": (".zarr", _zarr),
    "old zarr": (".zarr", _old_zarr),
    "hdf5": (".h5", _hdf5),
}
"""The ending of each kind of file, and what writes one."""


def write_features(folder: Path, kind: str, array: Array, stem: str = "a") -> Path:
    """Write an array as a file of a kind, and return its path."""
    ending, write = KINDS[kind]
    path = folder / f"{stem}{ending}"
    write(path, array)
    return path
