"""Pass over stored latents on a Dask cluster.

A task computes one span of rows with as many threads as its worker has cores for; the client adds the spans
in order and makes the steps. A task is a pure function of the store and the query: where a worker is lost,
Dask computes its spans anew, on another. Workers import this module, and so nothing that they don't need.
"""

from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from satstore.analysis.feature_moments import FeatureMoments, feature_moments
from satstore.analysis.floats import Floats
from satstore.analysis.logistic.engine import (
    Query,
    Sums,
    TileThreads,
    check_finite,
    keep_tile_threads,
    make_spans,
    sample_span,
    sum_in_order,
    sums_of_spans,
)
from satstore.analysis.logistic.loss import Codes
from satstore.analysis.row_source import RowSource
from satstore.analysis.tiles import tile_height
from satstore.config.latent_keys import LatentsKey
from satstore.errors import ClusterError
from satstore.storage.zarr import LatentArray, open_latents

if TYPE_CHECKING:
    from distributed import Client

Sent = TypeVar("Sent")

ATTEMPTS = 5
"""How often a pass is tried at most, where it was lost with its workers."""


@dataclass(frozen=True)
class LatentSource:
    """A layer's stored latents of one split, as any process can open them.

    Attributes
    ----------
    store
        The store's absolute path, or its URL.
    digest
        Of the latents: other ones at the same place are another source.
    """

    store: str
    key: LatentsKey
    split: str
    layer: str
    digest: str

    def rows(self) -> RowSource:
        """Open the rows anew, as a reader keeps a block of its own."""
        return _open(self).rows()


@lru_cache(maxsize=8)
def _open(source: LatentSource) -> LatentArray:
    return open_latents(source.store).split(str(source.key), source.split)[source.layer]


@dataclass(frozen=True)
class Cluster:
    """A connection to a Dask cluster.

    A task may have ``n_threads``; ``threads`` is one of this process, for what is computed here.
    """

    client: "Client"
    n_threads: int
    threads: TileThreads

    def run(self, function: Callable[[], Any]) -> list[Any]:
        """Call a function in every worker process, except those that are lost meanwhile."""
        return list(self.client.run(function, on_error="ignore").values())


class DaskEngine:
    """Passes over a layer's latents on a cluster; see :class:`satstore.analysis.logistic.engine.Engine`.

    ``codes`` is the class number of each row, −1 where it has none.
    """

    def __init__(self, cluster: Cluster, source: LatentSource, codes: Codes, n_logits: int) -> None:
        self._cluster, self._source, self._threads = cluster, source, cluster.threads
        self._codes = codes
        self._sent_codes: Any = None
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
                self._sent_codes = None
        raise ClusterError(
            "the cluster's workers were lost again and again; what is done is kept: run it again"
        )

    def _pass(self, query: Query[Sums]) -> Sums:
        client, n_threads = self._cluster.client, self._cluster.n_threads
        # Handed on as the result of a task, which is computed anew where it is lost with its worker. What is
        # scattered is not: and where a worker is lost meanwhile, the scheduler may go on for ever to send it.
        sent = client.submit(_identity, query, pure=False)
        if self._sent_codes is None:  # once for all passes
            self._sent_codes = client.submit(_identity, self._codes, pure=False)
        futures = [
            client.submit(_span, self._source, self._sent_codes, sent, span, n_threads, pure=False)
            for span in self._spans
        ]
        total: Sums = sum_in_order((future.result() for future in futures), query.zero())
        return total


def _identity(sent: Sent) -> Sent:
    return sent


def _span(source: LatentSource, codes: Codes, query: Query[Sums], span: range, n_threads: int) -> Sums:
    threads = keep_tile_threads(n_threads)
    [sums] = sums_of_spans(source.rows(), codes, query, spans=[span], threads=threads)
    return sums


def _sample(source: LatentSource, n_rows: int, span: range, n_threads: int) -> Floats:
    return sample_span(source.rows(), n_rows, span=span, threads=keep_tile_threads(n_threads))
