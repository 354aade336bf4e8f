"""Threads that compute with a tile each, while BLAS keeps to one thread in each of them."""

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
class Crew:
    """Threads: one that reads tiles, and some that compute with one tile each."""

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
_TURN = RLock()


@contextmanager
def crew_of_threads(n_workers: int | None = None) -> Iterator[Crew]:
    """Make workers, as many as BLAS has threads by default, and let BLAS have one in each of them meanwhile.

    BLAS divides a product by its number of threads, and rounds accordingly; with a tile per thread it can't.
    Nor do threads wait for each other within a product: on a busy machine that took up to nine times as long.
    """
    with _TURN:
        if n_workers is None:
            n_workers = max((library["num_threads"] for library in _blas().info()), default=1)
        limit = _blas().limit(limits=1)
        with limit, ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(n_workers) as workers:
            yield Crew(reader, workers, n_workers)


@cache
def lasting_crew(n_workers: int) -> Crew:
    """Make a crew once for a process that does nothing else, such as a cluster's worker."""
    _blas().limit(limits=1)
    return Crew(ThreadPoolExecutor(1), ThreadPoolExecutor(n_workers), n_workers)


@contextmanager
def crew_of_one() -> Iterator[Crew]:
    """Make a crew of one thread for what this process computes beside a cluster; BLAS has one meanwhile."""
    with _blas().limit(limits=1), ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as worker:
        yield Crew(reader, worker, 1)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")
