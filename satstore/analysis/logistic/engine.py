"""Compute sums over all rows, one pass at a time.

Rows are cut into tiles, and runs of tiles into spans. A tile's share is computed by one thread, shares are
added tile by tile within a span, and spans in order. All of it follows from the problem's sizes alone, so
that every engine gives the same bits, however many threads or machines it has.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from threading import RLock, local
from typing import Any, Protocol, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from satstore.analysis.feature_moments import FeatureMoments, feature_moments, nonfinite_error
from satstore.analysis.floats import Float64s, Floats, as_floats
from satstore.analysis.logistic.loss import Codes
from satstore.analysis.row_source import RowSource
from satstore.analysis.tiles import Reader, tile_height, tile_readers

MAX_SPANS = 16
"""Spans of a pass at most: among so many workers it can be shared out; each hands on its sums."""

Sums = TypeVar("Sums", bound=tuple[Any, ...])
"""A tuple of arrays, of which the first, the losses, shows whether anything was not finite."""
Sums_co = TypeVar("Sums_co", bound=tuple[Any, ...], covariant=True)


Result = TypeVar("Result")


@dataclass(frozen=True)
class TileThreads:
    """The threads of a pass over rows: one reads tiles ahead, n_workers compute with a tile each."""

    reader: Executor
    workers: Executor
    n_workers: int

    def map(self, function: Callable[..., Result], items: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """Yield function(*item) in the order of items, of which few are taken ahead."""
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(self.workers.submit(function, *item))
            if len(pending) > self.n_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


# BLAS's number of threads is the process's: of two fits in two threads, the first to end must not change it
# under the other. So they take turns, which costs nothing, as each keeps all cores busy.
_BLAS_LOCK = RLock()


@contextmanager
def start_tile_threads(n_workers: int | None = None) -> Iterator[TileThreads]:
    """Start workers, by default as many as BLAS has threads, and limit BLAS to one thread until they end.

    BLAS divides a product by its number of threads, and rounds accordingly; with a tile per thread it can't.
    Nor do threads wait for each other within a product: on a busy machine that took up to nine times as long.
    """
    with _BLAS_LOCK:
        if n_workers is None:
            n_workers = max((library["num_threads"] for library in _blas().info()), default=1)
        limit = _blas().limit(limits=1)
        with limit, ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(n_workers) as workers:
            yield TileThreads(reader, workers, n_workers)


@contextmanager
def start_single_thread() -> Iterator[TileThreads]:
    """Start one worker for what this process computes beside a cluster, and limit BLAS to one thread.

    Unlike :func:`start_tile_threads`, it lets fits in other threads begin meanwhile.
    """
    with _blas().limit(limits=1), ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as worker:
        yield TileThreads(reader, worker, 1)


@cache
def keep_tile_threads(n_workers: int) -> TileThreads:
    """Start workers that last as long as their process, which does nothing else: a cluster's worker."""
    _blas().limit(limits=1)
    return TileThreads(ThreadPoolExecutor(1), ThreadPoolExecutor(n_workers), n_workers)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


class Query(Protocol[Sums_co]):
    """A sum over all rows, each tile's share of it a pure function of the tile and its codes."""

    @property
    def weights(self) -> Floats:
        """The weights that rows are multiplied by, in the dtype that tiles are to have."""

    @property
    def shift(self) -> Float64s | None:
        """Values to subtract from every row, (n_features,); None for nothing."""

    def zero(self) -> Sums_co:
        """Return the sums over no rows."""

    def share(self, tile: Floats, codes: Codes) -> Sums_co:
        """Compute the share of a tile (n, n_features), with the class numbers codes (n,)."""


class Engine(Protocol):
    """Computes sums over all rows; each method raises a NumericsError if they hold NaN or infinities."""

    def moments(self) -> FeatureMoments:
        """Return each feature's mean and standard deviation, (n_features,).

        Raises
        ------
        NumericsError
            If rows hold NaN or infinities.
        """

    def sample(self, n_rows: int) -> Floats:
        """Return n_rows rows, evenly spaced over all, (n_rows, n_features), float32 or float64."""

    def sums(self, query: Query[Sums]) -> Sums:
        """Compute a query's sums over all rows in one pass."""


def make_spans(n_rows: int, height: int) -> list[range]:
    """Return the first rows of the tiles of each span."""
    starts = range(0, n_rows, height)
    size = -(-len(starts) // MAX_SPANS)
    return [starts[first : first + size] for first in range(0, len(starts), size)]


def sum_in_order(parts: Iterable[Sums], total: Sums) -> Sums:
    """Add parts to a total, in place, first to last, which every engine does in this order."""
    for part in parts:
        for array, share in zip(total, part, strict=True):
            # Cast as a whole, NumPy adds four times faster than when it casts on the way.
            array += share.astype(array.dtype, copy=False)
    return total


def sums_of_spans(
    rows: RowSource, codes: Codes, query: Query[Sums], *, spans: Sequence[range], threads: TileThreads
) -> Iterator[Sums]:
    """Yield each span's share of a query; the spans adjoin each other."""
    starts = range(spans[0].start, spans[-1].stop, spans[0].step)

    def share(place: slice, read: Reader) -> Sums:
        # Read where that can be, and widened, by the threads that compute, each in an array of its own.
        floats = read(_scratch.floats(place.stop - place.start, rows.shape[1]))
        return query.share(as_floats(floats, query.shift, query.weights.dtype), codes[place])

    parts = threads.map(share, tile_readers(rows, starts, threads.reader))
    for span in spans:
        yield sum_in_order(islice(parts, len(span)), query.zero())


def sample_span(rows: RowSource, n_sample: int, *, span: range, threads: TileThreads) -> Floats:
    """Return those of n_sample rows, evenly spaced over all, that lie in a span."""
    chosen = np.arange(n_sample) * rows.shape[0] // n_sample

    def pick(place: slice, read: Reader) -> Floats:
        first, last = np.searchsorted(chosen, (place.start, place.stop))
        if first == last:  # of small samples, most tiles need not be read
            return np.empty((0, rows.shape[1]), np.float32)
        floats = read(_scratch.floats(place.stop - place.start, rows.shape[1]))
        picked: Floats = floats[chosen[first:last] - place.start]
        return picked

    return np.concatenate(list(threads.map(pick, tile_readers(rows, span, threads.reader))))


def check_finite(sums: Sums, rows: RowSource, threads: TileThreads) -> Sums:
    """Return sums over rows; raise a NumericsError that names the rows if they hold NaN or infinities."""
    if not np.isfinite(sums[0]).all():
        raise threads.reader.submit(nonfinite_error, rows).result()
    return sums


class _Scratch(local):
    """Each thread's array for tiles, reused: the system would have to clear the pages of a new one."""

    def __init__(self) -> None:
        self._values = np.empty(0, np.float32)

    def floats(self, n_rows: int, n_features: int) -> Floats:
        if len(self._values) < n_rows * n_features:
            self._values = np.empty(n_rows * n_features, np.float32)
        return self._values[: n_rows * n_features].reshape(n_rows, n_features)


_scratch = _Scratch()


class ThreadEngine:
    """Passes over rows (n, n_features) with threads of this process; n_logits is of a row."""

    def __init__(self, rows: RowSource, codes: Codes, n_logits: int, threads: TileThreads) -> None:
        self._rows, self._codes, self._threads = rows, codes, threads
        self._spans = make_spans(rows.shape[0], tile_height(rows.shape[1], n_logits))

    def moments(self) -> FeatureMoments:
        """Return the features' moments; see :meth:`Engine.moments`."""
        return feature_moments(self._rows, self._threads.reader)

    def sample(self, n_rows: int) -> Floats:
        """Return rows evenly spaced over all; see :meth:`Engine.sample`."""
        parts = (sample_span(self._rows, n_rows, span=span, threads=self._threads) for span in self._spans)
        sample = np.concatenate(list(parts))
        return check_finite((sample,), self._rows, self._threads)[0]

    def sums(self, query: Query[Sums]) -> Sums:
        """Make one pass; see :meth:`Engine.sums`."""
        parts = sums_of_spans(self._rows, self._codes, query, spans=self._spans, threads=self._threads)
        return check_finite(sum_in_order(parts, query.zero()), self._rows, self._threads)
