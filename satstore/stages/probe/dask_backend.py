"""Fit probes on a Dask cluster: of this machine, or of many."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Self

from satstore.analysis.logistic.engine import Engine, start_single_thread
from satstore.analysis.logistic.memory import fit_bytes
from satstore.analysis.logistic.problem import LogisticProblem
from satstore.config.latent_keys import SPLITS
from satstore.errors import ClusterError, reason_of
from satstore.stages.probe.dask_engine import Cluster, DaskEngine, LatentSource
from satstore.stages.probe.job import ProbeJob
from satstore.stages.probe.memory import MemoryBudget, MemoryPeaks
from satstore.system.cores import count_cores
from satstore.system.memory import resident_bytes
from satstore.system.signals import children_ignoring_sigint

CONNECT_S = 10


class DaskBackend:
    """A Dask cluster whose workers share out the rows of a layer.

    It starts ``n_workers`` processes of this machine, or joins the cluster at the scheduler's address. Two
    layers are fitted at a time: while one takes a step, the workers pass over the rows of the other.
    """

    n_layers_at_once = 2

    def __init__(self, memory: MemoryBudget, *, n_workers: int, scheduler: str | None = None) -> None:
        self.memory, self.peaks = memory, MemoryPeaks(lambda function: self._cluster.run(function))
        self._connection = join_cluster(scheduler) if scheduler else start_cluster(n_workers)

    def __enter__(self) -> Self:
        self._cluster = self._connection.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._connection.__exit__(*error)

    @contextmanager
    def engines(self, job: ProbeJob, problem: LogisticProblem) -> Iterator[Mapping[str, Engine]]:
        """Make what passes over a layer's latents of each split; see :meth:`.backends.Backend.engines`."""
        # What this process takes; the workers' tiles are no more than those of a thread each.
        self.memory.check(resident_bytes() + fit_bytes(problem, 1), str(job))
        latents = job.latents
        yield {
            split: DaskEngine(
                self._cluster,
                LatentSource(latents.store, latents.key, split, job.layer, job.digest),
                latents.codes(split),
                problem.n_logits,
            )
            for split in SPLITS
        }


@contextmanager
def start_cluster(n_workers: int) -> Iterator[Cluster]:
    """Start a cluster of processes on this machine that share its cores: no more of them than cores."""
    from distributed import Client, LocalCluster

    _take_large_queries()
    n_cores = count_cores()
    n_workers = min(n_workers, n_cores)
    with ExitStack() as opened:
        # A Ctrl-C that comes meanwhile is raised at the end of this block, and ends the cluster.
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

    ClusterError if it doesn't answer, or has no workers.
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
    """Keep Dask from warning of large tasks: a query may be large, and one serves all spans of a pass."""
    import dask

    dask.config.set({"distributed.admin.large-graph-warning-threshold": 2**60})
