"""Rows: samples by features, read a range at a time, and cut into tiles that don't depend on the storage.

A source of rows is anything with a ``shape`` and a ``read``; NumPy, Dask and Zarr arrays are wrapped.
Results that are sums over rows come out equal bit for bit from every source because the sums run over
*tiles*: ranges of rows whose height is a function of the problem's sizes only, visited in order. How the
source is chunked decides what is read together, never what is summed together.

Neither Dask nor Zarr is imported here: an array of theirs can only arrive once its library is loaded.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from satstore.errors import ConfigError, NumericsError

Floats = NDArray[np.floating[Any]]

TILE_BYTES = 24 * 2**20
# Products of a tile are summed in float32 by BLAS; more rows would add rounding errors and save no time.
TILE_MAX_ROWS = 8192


@runtime_checkable
class Rows(Protocol):
    """A source of rows that need not fit in memory.

    A source that knows them may also have ``mean`` and ``std``, of n_features entries each (any shape): they
    spare the solver a pass. They set its coordinates, not its answer, so approximate ones will do.
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

    Ranges are widened to whole blocks, and the last block is kept for the next range, so that an ascending
    sweep loads every block once. Memory: one range and two blocks.

    Parameters
    ----------
    load
        Gives the array from one edge to a later one, (rows, ...).
    shape
        The array's shape, (n_rows, ...); axes after the first are flattened into features.
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
        Each feature's, if known: to be set by whoever knows them. See Rows.
    """

    def __init__(
        self,
        load: Callable[[int, int], Any],
        shape: Sequence[int],
        dtype: Any,
        edges: Sequence[int],
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


def lazy_rows(data: Any) -> Rows | None:
    """Wrap what is read out of core: Rows themselves, a Dask or a Zarr array, or an xarray one over either.

    Returns
    -------
    Rows or None
        None for everything that is in memory already, and for what is no array at all.

    Raises
    ------
    ConfigError
        If the array has one axis only, is not of real numbers, or is a Dask array of unknown chunk sizes.
    """
    if isinstance(data, Rows):
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


def widen(values: NDArray[Any], out: Floats) -> None:
    """Write values into out, converted to its dtype.

    float16 to float32 is done on the bits, three times faster than NumPy's cast: the sign moves to the top,
    exponent and mantissa to the place of float32's, and 2**112 makes up for the other exponent bias.
    """
    if values.dtype != np.float16 or out.dtype != np.float32:
        np.copyto(out, values, casting="unsafe")
        return
    # Blocks of a few hundred KiB stay in the cache through the four steps.
    height = max(1, 2**16 // max(1, values.shape[1]))
    for start in range(0, len(values), height):
        half, wide = values[start : start + height], out[start : start + height]
        bits = wide.view(np.int32)
        np.copyto(bits, half.view(np.int16))
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, np.int32(-0x70000001), out=bits)
        np.multiply(wide, np.float32(2.0**112), out=wide)
        # Infinity and NaN have the highest exponent, which the trick takes for an ordinary one. Of the
        # positive numbers they are the largest as int16, of the negative ones as uint16.
        if half.view(np.int16).max(initial=0) >= 0x7C00 or half.view(np.uint16).max(initial=0) >= 0xFC00:
            np.copyto(wide, half)


def tile_height(n_features: int, n_outputs: int) -> int:
    """Return the number of rows in a tile, a power of two, as those of stored chunks are as a rule.

    It depends on nothing but the arguments, so that sums over tiles don't depend on how rows are stored.
    A tile, its logits and their residuals take at most TILE_BYTES as float32 (or are one row).
    """
    height = TILE_BYTES // (4 * (n_features + 2 * n_outputs))
    return int(min(TILE_MAX_ROWS, 2 ** (max(1, height).bit_length() - 1)))


def tiles(
    rows: Rows, height: int, shift: Floats | None, dtype: Any, pool: Executor
) -> Iterator[tuple[slice, Floats]]:
    """Yield (range, tile) for all rows in order; while one is used, the pool prepares the next.

    Parameters
    ----------
    height
        Rows in a tile; the last one may have fewer.
    shift
        (n_features,), taken off every row; None for nothing.
    dtype
        Of the tiles, float32 or float64; None for the dtype that is read.

    Yields
    ------
    tuple of slice and array
        The absolute rows, and their values less shift, (rows, n_features), C-contiguous. It may be a view of
        the source: not to be written to.

    Raises
    ------
    NumericsError
        If the source gives another shape than was asked for.
    """

    def read(start: int, stop: int) -> Floats:
        return as_floats(_read(rows, start, stop), shift, dtype)

    yield from _ahead(read, range(0, rows.shape[0], height), rows.shape[0], pool)


def stored_tiles(rows: Rows, starts: range, pool: Executor) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield (range, tile) of adjoining tiles as they are stored; `as_floats` makes of them what tiles yields.

    Parameters
    ----------
    starts
        The tiles' first rows; the step is their height.
    """
    yield from _ahead(partial(_read, rows), starts, min(rows.shape[0], starts[-1] + starts.step), pool)


Reader = Callable[[Floats], Floats]
"""Gives a tile's rows, as floats: in the float32 array (rows, n_features) that it gets, or in another."""


def tile_readers(rows: Rows, starts: range, pool: Executor) -> Iterator[tuple[slice, Reader]]:
    """Yield (range, reader) of adjoining tiles, whose readers may be called by many threads at once.

    Where rows can be read so, they read; of others they hand on what the pool has read ahead.
    """
    end = min(rows.shape[0], starts[-1] + starts.step)
    if isinstance(rows, BlockRows) and rows.load_floats is not None and rows.is_cut_at(starts):
        for start in starts:
            stop = min(start + starts.step, end)
            yield slice(start, stop), partial(rows.load_floats, start, stop)
        return
    for place, tile in stored_tiles(rows, starts, pool):
        yield place, partial(_hand_on, tile)


def _hand_on(tile: NDArray[Any], out: Floats) -> Floats:
    if tile.dtype != np.float16:
        return as_floats(tile, None, None)
    widen(tile, out)
    return out


def _ahead(
    read: Callable[[int, int], NDArray[Any]], starts: range, end: int, pool: Executor
) -> Iterator[tuple[slice, NDArray[Any]]]:
    def submit(start: int) -> Future[NDArray[Any]]:
        return pool.submit(read, start, min(start + starts.step, end))

    pending = submit(starts[0])
    for start in starts:
        tile = pending.result()
        if start != starts[-1]:
            pending = submit(start + starts.step)
        yield slice(start, start + len(tile)), tile


def _read(rows: Rows, start: int, stop: int) -> NDArray[Any]:
    read = rows.read_stored if isinstance(rows, BlockRows) else rows.read
    tile = np.asarray(read(start, stop))
    expected = (stop - start, rows.shape[1])
    if tile.shape != expected:
        raise NumericsError(f"expected rows {start} to {stop} of shape {expected}, got {tile.shape}")
    return tile


def float_dtype(dtype: Any) -> "np.dtype[Any]":
    """Return what rows of a dtype come as: float32, or float64 where float32 can't hold them or it is wider.

    Raises
    ------
    ConfigError
        If they are no real numbers.
    """
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf":
        raise ConfigError(f"expected rows of real numbers, got dtype {dtype}; convert them to float32")
    return np.dtype(np.float64) if dtype.itemsize > 8 else np.result_type(dtype, np.float32)


def as_floats(values: NDArray[Any], shift: Floats | None, dtype: Any) -> Floats:
    """Return values less shift, in the given dtype, else the least that holds them; maybe a view."""
    found = float_dtype(values.dtype)
    wide = np.result_type(found, np.float32 if dtype is None else dtype)
    if values.dtype == np.float16:
        halves, values = values, np.empty(values.shape, np.float32)
        widen(halves, values)
    if shift is not None:
        # In the wider dtype: where the mean is many times the std, narrowing first loses digits.
        values = np.subtract(values, shift.astype(wide), dtype=wide)
    return np.ascontiguousarray(values, wide if dtype is None else dtype)


class Moments(NamedTuple):
    """The mean and the standard deviation (divided by n) of each feature, (n_features,) float64."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def feature_moments(rows: Rows, pool: Executor) -> Moments:
    """Take each feature's mean and standard deviation from the source, or compute them in one float64 pass.

    Blocks are merged by the rule of Chan, Golub and LeVeque (1979): no difference of large sums is taken.

    Raises
    ------
    NumericsError
        If there are NaN or infinities: says how many, and in which rows.
    """
    n_features = rows.shape[1]
    known = [getattr(rows, name, None) for name in Moments._fields]
    if all(moment is not None for moment in known):
        return _known_moments(known, n_features)
    count, mean, squares = 0, np.zeros(n_features), np.zeros(n_features)
    step = max(1, 2**18 // n_features)  # float64 copies of 2 MiB
    for place, tile in tiles(rows, tile_height(n_features, 1), None, None, pool):
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, len(tile), step):
                block = tile[start : start + step].astype(np.float64)
                block_mean = block.mean(axis=0)
                block -= block_mean
                delta, total = block_mean - mean, count + len(block)
                squares += np.einsum("ij,ij->j", block, block) + delta**2 * (count * len(block) / total)
                mean += delta * (len(block) / total)
                count = total
        if not np.isfinite(squares).all():
            # In the pool, where no other read of this source can be under way.
            raise pool.submit(nonfinite_error, rows, place.start).result()
    return Moments(mean, np.sqrt(squares / count))


def _known_moments(known: Sequence[Any], n_features: int) -> Moments:
    mean, std = (np.asarray(moment, np.float64).ravel() for moment in known)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != n_features or not np.isfinite(values).all():
            raise ConfigError(
                f"expected the rows' {name} to be {n_features} finite numbers, got {len(values)}, "
                f"{np.count_nonzero(~np.isfinite(values))} of them not finite"
            )
    return Moments(mean, std)


def nonfinite_error(rows: Rows, start: int = 0) -> NumericsError:
    """Count the values that are not finite, from the given row on, and make the error that tells."""
    height = tile_height(rows.shape[1], 1)
    n_values, n_bad = 0, 0
    found: list[str] = []
    for low in range(start, rows.shape[0], height):
        tile = rows.read(low, min(low + height, rows.shape[0]))
        counts = np.count_nonzero(~np.isfinite(tile), axis=1)
        n_values += int(counts.sum())
        n_bad += int(np.count_nonzero(counts))
        found += [str(low + row) for row in np.flatnonzero(counts)[: 5 - len(found)]]
    if not n_values:
        return NumericsError("the products of rows and weights overflow float32; scale the features down")
    return NumericsError(
        f"{n_values} values are NaN or infinite, in {n_bad} of {rows.shape[0]} rows "
        f"({', '.join(found)}{', …' if n_bad > len(found) else ''}); finite ones are needed: "
        "extract the layer again, or leave these rows out"
    )
