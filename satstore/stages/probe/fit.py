"""Fitting the probe of one layer, and of many layers side by side."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from satstore.config.keys import LatentsKey, ProbeKey
from satstore.errors import ConfigError, CorruptError, NotFoundError, NumericsError, SatstoreError
from satstore.runs.repair import extract_command
from satstore.runs.run import Run
from satstore.storage.commit_log import is_anything
from satstore.system.memory import peak_bytes, reset_peak

if TYPE_CHECKING:
    from satstore.stages.probe.dask_backend import Cluster
    from satstore.storage.zarr import LatentSplit

Splits = Mapping[str, "LatentSplit"]
"""The latents of train and eval."""


@dataclass(frozen=True)
class Fit:
    """What is to be fitted: one layer for one table of a run.

    Attributes
    ----------
    path
        The run's folder.
    key
        The table's.
    store, digest
        Where the latents lie, and what they are known by.
    """

    path: Path
    key: ProbeKey
    layer: str
    store: str
    digest: str
    C: float
    tol: float
    max_iter: int

    @property
    def latents(self) -> LatentsKey:
        """The key of the latents."""
        return self.key.latents


@dataclass(frozen=True)
class Fitted:
    """A layer's rows of the table, one or one per position, and the arrays that go to the store.

    Latents that allow no probe have one row, whose ``error`` says why, and no arrays.
    """

    rows: tuple[dict[str, Any], ...]
    arrays: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Means:
    """What fits layers: threads of this process, a device, or a Dask cluster.

    Attributes
    ----------
    workers
        Processes on this machine that share out each layer's rows; 1 for none but this one.
    scheduler
        The address of a Dask cluster's scheduler; None for none.
    device
        Such as ``cuda:0``; None for the CPU.
    memory_bytes
        What this process may take.
    force
        Begin also where memory can't suffice.
    """

    workers: int
    scheduler: str | None
    device: str | None
    memory_bytes: int
    force: bool


def fit_all(todo: list[Fit], means: Means) -> Iterator[tuple[Fit, Fitted | SatstoreError]]:
    """Fit layers and hand each on as it is done."""
    if not todo:
        return
    if means.scheduler is None and (means.workers == 1 or means.device is not None):
        peaks = Peaks(None)
        for job in todo:
            yield job, try_fit(job, means, None, peaks)
        return
    from satstore.stages.probe.dask_backend import join_cluster, start_cluster

    opened = join_cluster(means.scheduler) if means.scheduler else start_cluster(means.workers)
    # Two layers at a time: while one takes a step, the workers pass over the rows of the other. On Ctrl-C,
    # the cluster goes first, and the drivers fail for want of it.
    with ThreadPoolExecutor(2) as drivers, opened as cluster:
        peaks = Peaks(cluster)
        futures = {drivers.submit(try_fit, job, means, cluster, peaks): job for job in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            drivers.shutdown(wait=False, cancel_futures=True)


def try_fit(job: Fit, means: Means, cluster: "Cluster | None", peaks: "Peaks") -> Fitted | SatstoreError:
    """Fit one layer, or return why its latents can't be read, or not within the memory limit."""
    try:
        with peaks.measured() as peak:
            return fit(job, means, cluster, peak)
    except SatstoreError as error:
        return error


def fit(job: Fit, means: Means, cluster: "Cluster | None", peak: Callable[[], int]) -> Fitted:
    """Fit one layer's probes and evaluate them on both splits; the row of latents that allow none says why.

    Parameters
    ----------
    peak
        Returns the peak of memory of this fit; see :meth:`Peaks.measured`.

    Raises
    ------
    NotFoundError, CorruptError
        If the latents aren't there, or can't be read.
    ConfigError
        If the memory limit is too small for them.
    ClusterError
        If the cluster lost what it was computing.
    """
    from satstore.stages.probe import (
        backends as probe_backends,  # takes seconds to load, which are no layer's
    )

    started = time.perf_counter()
    run = Run(job.path)
    splits = {split: run.latents(str(job.latents), split) for split in ("train", "eval")}
    check_latents(run, job, splits)
    row: dict[str, Any] = {"layer": job.layer, "n_features": n_features_of(job, splits["train"])}
    try:
        check_train_labels(run, splits["train"])
        found, arrays = probe_backends.fit_layer(job, splits, means, cluster)
    except (NumericsError, ConfigError) as error:
        return Fitted(({**row, "converged": False, "error": str(error)},))
    costs = {
        "duration_s": round(time.perf_counter() - started, 3),
        "peak_memory_bytes": peak(),
    }
    return Fitted(tuple({**row, **measures, **costs} for measures in found), arrays)


def n_features_of(job: Fit, latents: "LatentSplit") -> int:
    """Return the features that one probe sees."""
    array = latents[job.layer]
    return array.shape[-1] if job.latents.pooling == "pixelwise" else array.n_features


# What may be wrong with the latents


def check_latents(run: Run, job: Fit, splits: Splits) -> None:
    """Check that a layer's latents are there, as they were written, one for each label.

    Their files are read once more, for their digests: beside the passes of a fit, that is little, and no
    other way tells a shard from its neighbour that has taken its place.

    Raises
    ------
    NotFoundError, CorruptError
        If not; the message names the layer, the split and the remedy.
    """
    from satstore.storage.zarr.layout import encode_layer

    location = run.latents_location
    committed = run.commits.read(location.name)
    remedy = f"write it again with: {extract_command(run, job.latents, overwrite=True)}"
    for split, latents in splits.items():
        if job.layer not in latents:
            raise NotFoundError(
                f"{run.name} has no {split} latents of layer {job.layer} at {job.latents}; "
                f"write them with: {extract_command(run, job.latents, overwrite=True)}"
            )
        for part in (encode_layer(job.layer), "label", "sample_id"):
            committed.check(location, f"{job.latents}/{split}/{part}", remedy, is_anything)
        array = latents[job.layer].array
        if array.shape[0] != len(latents.labels):
            raise CorruptError(
                f"{run.name}: layer {job.layer} at {job.latents} has {array.shape[0]} {split} samples, but "
                f"there are {len(latents.labels)} labels; write them again with: "
                f"{extract_command(run, job.latents, overwrite=True)}"
            )


def check_train_labels(run: Run, latents: "LatentSplit") -> None:
    """Check that there is something to tell apart.

    Raises
    ------
    ConfigError
        If the train split has one class or one sample.
    """
    names = class_names(run)
    found = sorted(set(latents.labels.tolist()))
    if len(found) < 2:
        what = f"one class, {names[found[0]]!r}" if len(latents.labels) > 1 else "one sample"
        what = what if found else "no sample"
        raise ConfigError(f"the train split has {what} only; a probe needs samples of two classes or more")


def warn_of_classes(run: Run, key: LatentsKey) -> None:
    """Warn of classes that one split has and the other lacks.

    Raises
    ------
    NotFoundError, CorruptError
        If the latents aren't there, or their labels can't be read or are none of the run's classes.
    """
    names = class_names(run)
    found: dict[str, set[int]] = {}
    for split in ("train", "eval"):
        found[split] = set(run.latents(str(key), split).labels.tolist())
        strange = sorted(found[split] - set(range(len(names))))
        if strange:
            raise CorruptError(
                f"{run.name}: the {split} labels at {key} hold {strange[0]}, expected 0 to "
                f"{len(names) - 1}, the indices of its classes; write them again with: "
                f"{extract_command(run, key, overwrite=True)}"
            )
    for split, other, effect in (
        ("eval", "train", "their samples count as wrong"),
        ("train", "eval", "the eval accuracy says nothing of them"),
    ):
        lacking = [names[index] for index in sorted(found[split] - found[other])]
        if lacking:
            shown = ", ".join(map(repr, lacking[:5])) + (", …" if len(lacking) > 5 else "")
            run.warn(
                "probe",
                f"at {key.group}, the {split} split has {len(lacking)} classes that the {other} split lacks "
                f"({shown}): {effect}; give both splits the same classes",
            )


def class_names(run: Run) -> list[str]:
    """Return the names of the run's classes, by index."""
    assert run.manifest.dataset is not None
    return run.manifest.dataset.classes


# What a fit takes


class Peaks:
    """The peaks of memory of fits that run side by side, in this process and in a cluster's workers.

    A process has one peak, which a fit that begins resets: what it was by then counts for those that run.
    """

    def __init__(self, cluster: "Cluster | None") -> None:
        self._cluster = cluster
        self._lock = Lock()
        self._running: dict[object, int] = {}

    @contextmanager
    def measured(self) -> Iterator[Callable[[], int]]:
        """Begin a fit's peak; give what returns it: the resident memory of the process that had the most.

        Libraries and the fits beside it are included. Where the system keeps no peak that can be reset, it
        is the highest of that process's life.
        """
        fit = object()
        with self._lock:
            self._note()
            self._running[fit] = 0
            reset_peak()
            if self._cluster is not None:
                self._cluster.run(reset_peak)
        try:
            yield partial(self._peak, fit)
        finally:
            with self._lock:
                del self._running[fit]

    def _peak(self, fit: object) -> int:
        with self._lock:
            self._note()
            return self._running[fit]

    def _note(self) -> None:
        if self._running:
            peaks = [peak_bytes(), *(self._cluster.run(peak_bytes) if self._cluster is not None else ())]
            self._running = {fit: max(known, *peaks) for fit, known in self._running.items()}
