"""Open Zarr arrays that somebody else wrote, as sources of features."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from satstore.storage.feature_formats import Arrays, FileArray
from satstore.storage.zarr.layout import Array, check_claims


def open_zarr(path: Path, _: ExitStack) -> Arrays:
    """Open the arrays of a Zarr folder, of version 2 or 3, in groups of any depth.

    CorruptError if its metadata claim too much; zarr's own errors if they can't be read, or ask for pickles.
    """
    node = zarr.open(path, mode="r")
    if isinstance(node, zarr.Array):
        arrays: dict[str, Array] = {"": node}
    else:
        members = node.members(max_depth=None)
        arrays = {name: member for name, member in members if isinstance(member, zarr.Array)}
    for array in arrays.values():
        if array.shape and array.dtype.kind in "biuf":
            check_claims(array, is_read_whole=False)
    return {name: _describe(array) for name, array in arrays.items()}


def _describe(array: Array) -> FileArray:
    def read(start: int, stop: int) -> NDArray[Any]:
        return np.asarray(array[start:stop])

    return FileArray(array.shape, np.dtype(array.dtype), read)
