"""Threads that compute one tile each, while BLAS keeps to one thread in each of them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from threading import RLock
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

Result = TypeVar("Result")


@dataclass(frozen=True)
class TileThreads:
    """The threads of a pass over rows.

    Attributes
    ----------
    reader
        One thread, which reads tiles ahead.
    workers
        Threads that compute with one tile each.
    n_workers
        How many they are.
    """

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
