"""Cut rows into tiles, the ranges over which sums run.

A sum over rows comes out equal bit for bit from every source because it runs over tiles, whose height is a
function of the problem's sizes only, visited in order. How a source is chunked decides what is read together,
never what is summed together.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.floats import Floats, as_floats, widen
from satstore.analysis.row_source import BlockRows, RowSource
from satstore.errors import NumericsError

TILE_BYTES = 24 * 2**20

# Products of a tile are summed in float32 by BLAS; more rows would add rounding errors and save no time.
TILE_MAX_ROWS = 8192


def tile_height(n_features: int, n_outputs: int) -> int:
    """Return the number of rows in a tile, a power of two, as those of stored chunks are as a rule.

    It depends on nothing but the arguments, so that sums over tiles don't depend on how rows are stored.
    A tile, its logits and their residuals take at most TILE_BYTES as float32 (or are one row).
    """
    height = TILE_BYTES // (4 * (n_features + 2 * n_outputs))
    return int(min(TILE_MAX_ROWS, 2 ** (max(1, height).bit_length() - 1)))


def tiles(
    rows: RowSource, height: int, pool: Executor, *, shift: Floats | None = None, dtype: Any = None
) -> Iterator[tuple[slice, Floats]]:
    """Yield (range, tile) for all rows in order; while one is used, the pool prepares the next.

    Parameters
    ----------
    shift
        (n_features,), taken off every row; None for nothing.

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


def stored_tiles(rows: RowSource, starts: range, pool: Executor) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield (range, tile) of adjoining tiles as they are stored; see `as_floats`."""
    yield from _ahead(partial(_read, rows), starts, min(rows.shape[0], starts[-1] + starts.step), pool)


Reader = Callable[[Floats], Floats]
"""Gives a tile's rows, as floats: in the float32 array (rows, n_features) that it gets, or in another."""


def tile_readers(rows: RowSource, starts: range, pool: Executor) -> Iterator[tuple[slice, Reader]]:
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


def _read(rows: RowSource, start: int, stop: int) -> NDArray[Any]:
    read = rows.read_stored if isinstance(rows, BlockRows) else rows.read
    tile = np.asarray(read(start, stop))
    expected = (stop - start, rows.shape[1])
    if tile.shape != expected:
        raise NumericsError(f"expected rows {start} to {stop} of shape {expected}, got {tile.shape}")
    return tile
