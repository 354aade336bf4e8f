"""Passes over stored latents on a Dask cluster: of this machine, or of many.

A task computes one span of rows with as many threads as its worker has cores for; the client adds the spans
in order and makes the steps. A task is a pure function of the store and the query: where a worker is lost,
Dask computes its spans anew, on another.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from satstore.analysis.feature_moments import FeatureMoments, feature_moments
from satstore.analysis.floats import Floats
from satstore.analysis.logistic.engine import (
    Query,
    Sums,
    check_finite,
    make_spans,
    sample_span,
    sum_in_order,
    sums_of_spans,
)
from satstore.analysis.logistic.evaluation import class_codes
from satstore.analysis.logistic.loss import Codes
from satstore.analysis.logistic.tile_threads import TileThreads, keep_tile_threads, start_single_thread
from satstore.analysis.row_source import RowSource
from satstore.analysis.tiles import tile_height
from satstore.config.keys import LatentsKey
from satstore.errors import ClusterError, reason_of
from satstore.storage.zarr import LatentArray, open_latents
from satstore.system.cores import count_cores
from satstore.system.signals import children_ignoring_sigint

if TYPE_CHECKING:
    from distributed import Client

CONNECT_S = 10
ATTEMPTS = 5
"""How often a pass is tried that was lost with its workers."""


@dataclass(frozen=True)
class LatentSource:
    """A layer's stored latents of one split, as any process can open them.

    Attributes
    ----------
    store
        The store's absolute path, or its URL.
    digest
        Of the latents: other ones at the same place are another source.
    classes
        The labels that are numbered, ascending; others get −1.
    """

    store: str
    latents: LatentsKey
    split: str
    layer: str
    digest: str
    classes: tuple[int, ...]

    def rows(self) -> RowSource:
        """Open the rows anew: who reads them keeps a block."""
        return _open(self)[0].rows()

    def codes(self) -> Codes:
        """Return the class number of each row."""
        return _open(self)[1]


@lru_cache(maxsize=8)
def _open(source: LatentSource) -> tuple[LatentArray, Codes]:
    latents = open_latents(source.store).split(str(source.latents), source.split)
    return latents[source.layer], class_codes(latents.labels, np.asarray(source.classes))


@dataclass(frozen=True)
class Cluster:
    """A connection to a Dask cluster, how many threads a task may have, and what computes beside it."""

    client: "Client"
    n_threads: int
    threads: TileThreads

    def run(self, function: Callable[[], Any]) -> list[Any]:
        """Call a function in every worker process; a worker that is lost meanwhile is passed over."""
        return list(self.client.run(function, on_error="ignore").values())


@contextmanager
def start_cluster(n_workers: int) -> Iterator[Cluster]:
    """Start a cluster of processes on this machine that share its cores: no more of them than cores."""
    from distributed import Client, LocalCluster

    _take_large_queries()
    n_cores = count_cores()
    n_workers = min(n_workers, n_cores)
    with ExitStack() as opened:
        # At its end a Ctrl-C is heard that came meanwhile: the cluster has to end then.
        with children_ignoring_sigint():
            cluster = opened.enter_context(
                LocalCluster(
                    n_workers=n_workers,
                    threads_per_worker=1,
                    memory_limit=None,  # probes keep to their own; Dask would stop what the system can bear
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",  # any free port, so that two clusters do not meet
                    silence_logs=logging.CRITICAL,
                )
            )
        client = opened.enter_context(Client(cluster))
        threads = opened.enter_context(start_single_thread())
        yield Cluster(client, max(1, n_cores // n_workers), threads)


@contextmanager
def join_cluster(address: str) -> Iterator[Cluster]:
    """Connect to a scheduler, such as ``tcp://host:8786``. Its workers' own threads are the tasks' only ones.

    Raises
    ------
    ClusterError
        If it doesn't answer, or has no workers.
    """
    from distributed import Client

    _take_large_queries()
    advice = "start one with: dask scheduler, and workers with: dask worker ADDRESS; or leave --scheduler out"
    try:
        client = Client(address, timeout=CONNECT_S)
    except (OSError, TimeoutError, ValueError) as error:
        reason = reason_of(error)
        raise ClusterError(
            f"no Dask scheduler answers at {address} within {CONNECT_S} s ({reason}); {advice}"
        ) from error
    with client, start_single_thread() as threads:
        if not client.scheduler_info()["workers"]:
            raise ClusterError(f"the Dask scheduler at {address} has no workers; {advice}")
        yield Cluster(client, 1, threads)


def _take_large_queries() -> None:
    """Let Dask not warn of tasks that are large: a query may be, and there is one for all spans of a pass."""
    import dask

    dask.config.set({"distributed.admin.large-graph-warning-threshold": 2**60})


class ClusterEngine:
    """Passes over a layer's latents on a cluster; see :class:`satstore.analysis.logistic.engine.Engine`."""

    def __init__(self, cluster: Cluster, source: LatentSource, n_logits: int) -> None:
        # A thread of this process, for what is read here.
        self._cluster, self._source, self._threads = cluster, source, cluster.threads
        self._rows = source.rows()
        self._spans = make_spans(self._rows.shape[0], tile_height(self._rows.shape[1], n_logits))

    def moments(self) -> FeatureMoments:
        """Return the features' moments, which the store has as a rule."""
        return feature_moments(self._rows, self._threads.reader)

    def sample(self, n_rows: int) -> Floats:
        """Return rows evenly spaced over all, which the workers pick from their spans."""
        client, n_threads = self._cluster.client, self._cluster.n_threads
        futures = [
            client.submit(_sample, self._source, n_rows, span, n_threads, pure=False) for span in self._spans
        ]
        sample = np.concatenate([future.result() for future in futures])
        return check_finite((sample,), self._rows, self._threads)[0]

    def sums(self, query: Query[Sums]) -> Sums:
        """Make one pass, its spans on the workers."""
        from distributed.comm.core import CommClosedError

        for _ in range(ATTEMPTS):
            try:
                return check_finite(self._pass(query), self._rows, self._threads)
            except (CancelledError, CommClosedError):
                pass
        raise ClusterError(
            "the cluster's workers were lost again and again; what is done is kept: run it again"
        )

    def _pass(self, query: Query[Sums]) -> Sums:
        client, n_threads = self._cluster.client, self._cluster.n_threads
        # Handed on as the result of a task, which is computed anew where it is lost with its worker. What is
        # scattered is not: and where a worker is lost meanwhile, the scheduler may go on for ever to send it.
        sent = client.submit(_same, query, pure=False)
        futures = [
            client.submit(_span, self._source, sent, span, n_threads, pure=False) for span in self._spans
        ]
        total: Sums = sum_in_order((future.result() for future in futures), query.zero())
        return total


def _same(query: Query[Sums]) -> Query[Sums]:
    return query


def _span(source: LatentSource, query: Query[Sums], span: range, n_threads: int) -> Sums:
    threads = keep_tile_threads(n_threads)
    [sums] = sums_of_spans(source.rows(), source.codes(), query, spans=[span], threads=threads)
    return sums


def _sample(source: LatentSource, n_rows: int, span: range, n_threads: int) -> Floats:
    return sample_span(source.rows(), n_rows, span=span, threads=keep_tile_threads(n_threads))
