"""Read rows, samples by features, a range at a time.

A source is anything with a ``shape`` and a ``read``; NumPy, Dask and Zarr arrays are wrapped. Neither Dask
nor Zarr is imported here: an array of theirs can only arrive once its library is loaded.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.floats import Floats, as_floats, float_dtype
from satstore.errors import ConfigError


@runtime_checkable
class RowSource(Protocol):
    """Rows that need not fit in memory.

    A source may also have ``mean`` and ``std``, of n_features entries each (any shape): they spare the solver
    a pass. They set its preconditioner, not its answer, so approximate ones will do.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Return (n_rows, n_features)."""

    def read(self, start: int, stop: int) -> Floats:
        """Return rows start to stop, (stop - start, n_features), float32 (float64 if stored wider).

        Called with ascending, adjoining ranges, from one thread at a time.
        """


class ArrayRows:
    """The rows of a 2-D NumPy array; ranges are views of it."""

    def __init__(self, array: Floats) -> None:
        self._array = array
        self.shape: tuple[int, int] = (array.shape[0], array.shape[1])

    def read(self, start: int, stop: int) -> Floats:
        """Return rows start to stop, a view."""
        return self._array[start:stop]


class BlockRows:
    """The rows of an array that is stored, or computed, block by block along its first axis.

    ``load`` gives the array from one edge to a later one; axes after the first are flattened into features.
    Ranges are widened to whole blocks, and the last block is kept for the next range, so that an ascending
    sweep loads every block once. Memory: one range and two blocks.

    Parameters
    ----------
    dtype
        The array's dtype. Rows come as float32, or as float64 where float32 can't hold them (int32, float64).
    edges
        Where blocks begin and end: ascending, from 0 to n_rows.
    load_floats
        Writes the rows from one edge to a later one, flattened, to a float32 array and returns it; many
        threads may call it at once. None where there is no such thing.

    Attributes
    ----------
    mean, std
        Each feature's, if known: set by the caller. See RowSource.
    """

    def __init__(
        self,
        load: Callable[[int, int], Any],
        shape: Sequence[int],
        dtype: Any,
        edges: Sequence[int],
        *,
        load_floats: Callable[[int, int, Floats], Floats] | None = None,
    ) -> None:
        if len(shape) < 2:
            raise ConfigError(
                f"expected rows of features, an array of two or more axes; got shape {tuple(shape)}"
            )
        self.shape: tuple[int, int] = (shape[0], int(np.prod(shape[1:])))
        self.dtype = float_dtype(dtype)
        self._load, self.load_floats = load, load_floats
        self._edges = np.asarray(edges, dtype=np.int64)
        self.mean: Floats | None = None
        self.std: Floats | None = None
        self._kept: NDArray[Any] = np.empty((0, self.shape[1]), dtype)
        self._kept_start = 0

    def read(self, start: int, stop: int) -> Floats:
        """Return rows start to stop, (stop - start, n_features)."""
        return as_floats(self.read_stored(start, stop), None, self.dtype)

    def is_cut_at(self, starts: range) -> bool:
        """Tell whether blocks begin at all of these rows."""
        return bool(np.isin(starts, self._edges).all())

    def read_stored(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows start to stop in the dtype that they are stored in."""
        parts = []
        offset = start - self._kept_start
        if 0 <= offset < len(self._kept):
            parts.append(self._kept[offset : offset + stop - start])
        first = start + sum(map(len, parts))
        if first < stop or not parts:
            parts.append(self._load_blocks(first, stop))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _load_blocks(self, start: int, stop: int) -> NDArray[Any]:
        low = int(self._edges[np.searchsorted(self._edges, start, side="right") - 1])
        high = int(self._edges[np.searchsorted(self._edges, stop, side="left")])
        if len(self._kept):
            self._kept = np.empty((0, self.shape[1]))  # frees the old block before the new ones come
        blocks = np.asarray(self._load(low, high)).reshape(high - low, self.shape[1])
        last = int(self._edges[np.searchsorted(self._edges, high) - 1])
        # The next range, or the next sweep over a single block, needs it again.
        if high > stop or last == 0:
            self._kept_start = max(low, last)
            # A copy, because a view would hold the whole range.
            self._kept = blocks[self._kept_start - low :].copy() if last > low else blocks
        return blocks[start - low : stop - low]


def as_row_source(data: Any) -> RowSource | None:
    """Wrap data that is read out of core: a RowSource, a Dask or Zarr array, or an xarray one over either.

    Returns
    -------
    RowSource or None
        None for all that is in memory already, and for what is no array.

    Raises
    ------
    ConfigError
        If the array has one axis only, is not of real numbers, or is a Dask array of unknown chunk sizes.
    """
    if isinstance(data, RowSource):
        return data
    if _is_instance(data, "xarray", "DataArray"):
        data = data.data
    if _is_instance(data, "dask.array", "Array"):
        return _dask_rows(data)
    if _is_instance(data, "zarr", "Array"):
        n_rows, step = data.shape[0] if data.ndim else 0, data.chunks[0] if data.ndim else 1
        edges = [*range(0, n_rows, step), n_rows]
        return BlockRows(lambda low, high: data[low:high], data.shape, data.dtype, edges)
    return None


def _is_instance(data: Any, module: str, name: str) -> bool:
    return module in sys.modules and isinstance(data, getattr(sys.modules[module], name))


def _dask_rows(array: Any) -> BlockRows:
    if np.isnan(array.shape).any():
        raise ConfigError(
            f"the dask array has unknown chunk sizes, shape {array.shape}; call compute_chunk_sizes() first"
        )
    edges = [0, *accumulate(array.chunks[0] if array.ndim else ())]
    return BlockRows(lambda low, high: array[low:high].compute(), array.shape, array.dtype, edges)
