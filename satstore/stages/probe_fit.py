"""Fitting the probe of one layer, and of many layers side by side."""

import multiprocessing
import resource
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satstore.config import pooling_flag
from satstore.errors import ConfigError, CorruptError, NotFoundError, NumericsError, SatstoreError, StageError
from satstore.manifest import split_probe_key
from satstore.processes import deaf_children, follow_main_process
from satstore.run import Run

if TYPE_CHECKING:
    from satstore.store import LatentSplit

Splits = Mapping[str, "LatentSplit"]
"""The latents of train and eval."""


@dataclass(frozen=True)
class Fit:
    """What is to be fitted: one layer for one table of a run."""

    path: Path
    key: str
    layer: str
    C: float
    tol: float
    max_iter: int
    n_threads: int
    memory_bytes: int

    @property
    def pooling(self) -> str:
        """The pooling of the latents, as the store names it."""
        return split_probe_key(self.key)[0]


@dataclass(frozen=True)
class Fitted:
    """A layer's rows of the table, one or one per position, and the arrays that go to the store.

    Latents that allow no probe have one row, whose ``error`` says why, and no arrays.
    """

    rows: tuple[dict[str, Any], ...]
    arrays: dict[str, Any] = field(default_factory=dict)


def fit_all(todo: list[Fit], workers: int) -> Iterator[tuple[Fit, Fitted | SatstoreError]]:
    """Fit layers, here or in processes side by side, and hand each on as it is done."""
    if workers == 1 or len(todo) < 2:
        for job in todo:
            yield job, try_fit(job)
        return
    # Not fork: zarr's readers may hang in forked children.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), context, initializer=follow_main_process) as pool:
        with deaf_children():
            futures = {pool.submit(try_fit, job): job for job in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise StageError(
                "a process that fitted layers was killed, as it is where memory runs out; what is done is "
                "kept: go on with a lower -mp"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def try_fit(job: Fit) -> Fitted | SatstoreError:
    """Fit one layer, or return why its latents can't be read, or not within the memory limit."""
    try:
        return fit(job)
    except SatstoreError as error:
        return error


def fit(job: Fit) -> Fitted:
    """Fit one layer's probe and evaluate it on both splits; the row of latents that allow no probe says why.

    Raises
    ------
    NotFoundError, CorruptError
        If the latents aren't there, or can't be read.
    ConfigError
        If the memory limit is too small for them.
    """
    import satstore.analysis.logistic
    import satstore.store  # noqa: F401  # both take seconds to load, which are no layer's

    started = time.perf_counter()
    reset_peak_memory()
    run = Run(job.path)
    splits = {split: run.latents(job.pooling, split) for split in ("train", "eval")}
    check_latents(run, job, splits)
    row: dict[str, Any] = {"layer": job.layer, "n_features": splits["train"][job.layer].n_features}
    try:
        check_train_labels(run, splits["train"])
        found, arrays = fit_layer(job, splits)
    except (NumericsError, ConfigError) as error:
        return Fitted(({**row, "converged": False, "error": str(error)},))
    costs = {
        "duration_s": round(time.perf_counter() - started, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    return Fitted(tuple({**row, **measures, **costs} for measures in found), arrays)


def fit_layer(job: Fit, splits: Splits) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Fit one probe to all of a layer's features; return its measures for the table, and its arrays."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    from satstore.analysis.logistic import LogisticProbe, evaluate

    train, held_out = splits["train"], splits["eval"]
    probe = LogisticProbe(C=job.C, tol=job.tol, max_iter=job.max_iter)
    with threadpool_limits(job.n_threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the table says it, and the parent warns
        probe.fit(train[job.layer].rows(), train.labels)
        seen = evaluate(probe, train[job.layer].rows(), train.labels)
        unseen = evaluate(probe, held_out[job.layer].rows(), held_out.labels)
    measures = {
        "train_accuracy": seen.accuracy,
        "eval_accuracy": unseen.accuracy,
        "top5": unseen.top_accuracy,
        "train_loss": seen.loss,
        "objective": probe.objective_,
        "n_iter": int(probe.n_iter_),
        "converged": bool(probe.converged_),
    }
    arrays = {
        "coef": probe.coef_,
        "intercept": probe.intercept_,
        "confusion": unseen.confusion,
        "class_index": probe.classes_,
    }
    return [measures], arrays


# What may be wrong with the latents


def extract_command(run: Run, pooling: str) -> str:
    """Return the command that writes a pooling's latents again."""
    return f"satstore extract --run {run.name} -d {pooling_flag(pooling)} --overwrite"


def check_latents(run: Run, job: Fit, splits: Splits) -> None:
    """Check that a layer's latents are there, one for each label, and that the memory holds two chunks.

    Raises
    ------
    NotFoundError, CorruptError, ConfigError
        If not; the message names the layer, the split and the remedy.
    """
    for split, latents in splits.items():
        if job.layer not in latents:
            raise NotFoundError(
                f"{run.name} has no {split} latents of layer {job.layer} at {job.pooling}; "
                f"write them with: {extract_command(run, job.pooling)}"
            )
        array = latents[job.layer].array
        if array.shape[0] != len(latents.labels):
            raise CorruptError(
                f"{run.name}: layer {job.layer} at {job.pooling} has {array.shape[0]} {split} samples, but "
                f"there are {len(latents.labels)} labels; write them again with: "
                f"{extract_command(run, job.pooling)}"
            )
        row_bytes = latents[job.layer].n_features * array.dtype.itemsize
        needed_bytes = 2 * min(array.chunks[0], array.shape[0]) * row_bytes
        if needed_bytes > job.memory_bytes:
            raise ConfigError(
                f"two chunks of layer {job.layer} at {job.pooling} take {needed_bytes} bytes, the memory "
                f"limit leaves {job.memory_bytes} for each worker; raise --memory-limit, or lower -mp"
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


def warn_of_classes(run: Run, pooling: str) -> None:
    """Warn of classes that one split has and the other lacks.

    Raises
    ------
    NotFoundError, CorruptError
        If the latents aren't there, or their labels can't be read or are none of the run's classes.
    """
    names = class_names(run)
    found: dict[str, set[int]] = {}
    for split in ("train", "eval"):
        found[split] = set(run.latents(pooling, split).labels.tolist())
        strange = sorted(found[split] - set(range(len(names))))
        if strange:
            raise CorruptError(
                f"{run.name}: the {split} labels at {pooling} hold {strange[0]}, expected 0 to "
                f"{len(names) - 1}, the indices of its classes; write them again with: "
                f"{extract_command(run, pooling)}"
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
                f"at {pooling}, the {split} split has {len(lacking)} classes that the {other} split lacks "
                f"({shown}): {effect}; give both splits the same classes",
            )


def class_names(run: Run) -> list[str]:
    """Return the names of the run's classes, by index."""
    assert run.manifest.dataset is not None
    return run.manifest.dataset.classes


# What a fit takes


def reset_peak_memory() -> None:
    """Begin a new peak of this process's resident memory, where the system can: on Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """Return the most resident memory that this process had since the last reset, its libraries included.

    Where the system keeps no peak that can be reset, it is the highest of the process's life.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
