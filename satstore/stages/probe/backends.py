"""Fitting one layer's probes: with threads of this process, on a device, or on a Dask cluster."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.floats import Floats, widen
from satstore.analysis.logistic.engine import Engine, ThreadEngine
from satstore.analysis.logistic.evaluation import EvaluationQuery, EvaluationSums, class_codes
from satstore.analysis.logistic.memory import fit_bytes, problems_at_once
from satstore.analysis.logistic.problem import LogisticProblem
from satstore.analysis.logistic.solver import Solution, solve
from satstore.analysis.logistic.tile_threads import start_tile_threads
from satstore.analysis.row_source import BlockRows, RowSource
from satstore.stages.probe.fit import Fit, Means, Splits
from satstore.storage.zarr import LatentArray
from satstore.system.cores import count_cores
from satstore.system.limits import check_memory
from satstore.system.memory import resident_bytes

if TYPE_CHECKING:
    from satstore.stages.probe.dask_backend import Cluster

TOP = 5
# Confusion matrices of all positions are kept up to here; a table of accuracies says the rest.
CONFUSIONS_BYTES = 64 * 2**20


def fit_layer(
    job: Fit, splits: Splits, means: Means, cluster: "Cluster | None"
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Fit a layer's probe, or one for each position; return their measures for the table, and their arrays.

    Raises
    ------
    NumericsError
        If the latents hold NaN or infinities.
    MemoryLimitError
        If the memory limit, or this machine's memory, is too small.
    """
    train = splits["train"][job.layer]
    classes = np.unique(splits["train"].labels)
    axes = train.shape[1:-1] if job.latents.pooling == "pixelwise" else ()
    n_positions = int(np.prod(axes, dtype=np.int64))
    value_bytes = max(latents[job.layer].array.dtype.itemsize for latents in splits.values())
    problem = LogisticProblem(
        n_rows=train.shape[0],
        n_features=train.n_features,
        n_classes=len(classes),
        C=job.C,
        tol=job.tol,
        max_iter=job.max_iter,
        n_positions=n_positions,
        value_bytes=value_bytes,
    )
    with make_engines(job, splits, classes, problem, means, cluster) as engines:
        room_bytes = means.memory_bytes - resident_bytes()
        solution = solve(engines["train"], problem, problems_at_once(problem, room_bytes))
        confused = n_positions * len(classes) ** 2 * 8 <= CONFUSIONS_BYTES
        query = EvaluationQuery(*solution.model(np.float32), top=TOP, confused=confused)
        seen, unseen = (engines[split].sums(query) for split in ("train", "eval"))
    n_eval = splits["eval"][job.layer].shape[0]
    measures = [measure(problem, solution, seen, unseen, n_eval, position) for position in range(n_positions)]
    for place, row in zip(np.ndindex(*axes), measures, strict=True):
        row |= dict(zip(("y", "x"), place, strict=False))
    arrays: dict[str, NDArray[Any]] = {"coef": solution.weights, "intercept": solution.intercept}
    arrays |= {"confusion": unseen.confusion} if confused else {}
    arrays = {name: array.reshape(*axes, *array.shape[1:]) for name, array in arrays.items()}
    if axes:
        arrays["accuracy"] = unseen.right.reshape(axes) / n_eval
    return measures, arrays | {"class_index": classes}


def measure(
    problem: LogisticProblem,
    solution: Solution,
    seen: EvaluationSums,
    unseen: EvaluationSums,
    n_eval: int,
    position: int,
) -> dict[str, Any]:
    """Return one probe's row."""
    return {
        "train_accuracy": int(seen.right[position]) / problem.n_rows,
        "eval_accuracy": int(unseen.right[position]) / n_eval,
        "top5": int(unseen.top[position]) / n_eval,
        "train_loss": float(seen.loss[position]) / problem.n_rows,
        "objective": float(solution.objective[position]),
        "n_iter": int(solution.n_iterations[position]),
        "converged": bool(solution.converged[position]),
    }


@contextmanager
def make_engines(
    job: Fit,
    splits: Splits,
    classes: NDArray[np.int64],
    problem: LogisticProblem,
    means: Means,
    cluster: "Cluster | None",
) -> Iterator[Mapping[str, Engine]]:
    """Make what computes over the latents of each split."""
    n_logits = problem.n_positions * problem.n_outputs
    if cluster is not None:
        if not means.force:
            # What this process holds; the workers' tiles are no more than those of a thread each.
            refuse_too_much(job, resident_bytes() + fit_bytes(problem, 1), means)
        from satstore.stages.probe.dask_backend import ClusterEngine, LatentSource

        yield {
            split: ClusterEngine(
                cluster,
                LatentSource(job.store, job.latents, split, job.layer, job.digest, tuple(classes.tolist())),
                n_logits,
            )
            for split in splits
        }
        return
    n_threads = choose_threads(job, problem, means)
    with start_tile_threads(n_threads) as threads:
        room_bytes = means.memory_bytes - resident_bytes() - fit_bytes(problem, n_threads)
        engines: dict[str, Engine] = {}
        for split, latents in splits.items():
            codes = class_codes(latents.labels, classes)
            rows = open_rows(latents[job.layer], room_bytes if split == "train" else 0)
            if means.device is not None:
                import torch

                from satstore.analysis.logistic.torch_engine import TorchEngine

                engines[split] = TorchEngine(
                    rows, codes, n_logits, threads, device=torch.device(means.device)
                )
            else:
                engines[split] = ThreadEngine(rows, codes, n_logits, threads)
        yield engines


def open_rows(latents: LatentArray, room_bytes: int) -> RowSource:
    """Open a layer's rows: in memory, as they are stored, where there is room for them, else block by block.

    That spares every pass but the first the decoding, and changes no bit.
    """
    rows = latents.rows()
    if latents.array.nbytes > room_bytes:
        return rows
    held = latents.numpy()

    def widened(start: int, stop: int, out: Floats) -> Floats:
        widen(held[start:stop].reshape(out.shape), out)
        return out

    edges = range(held.shape[0] + 1)
    inner = BlockRows(lambda low, high: held[low:high], held.shape, held.dtype, edges, widened)
    inner.mean, inner.std = rows.mean, rows.std
    return inner


def choose_threads(job: Fit, problem: LogisticProblem, means: Means) -> int:
    """Return how many threads the memory limit allows, the cores at most.

    Raises
    ------
    MemoryLimitError
        If the limit, or this machine's memory, allows none.
    """
    held_bytes = resident_bytes()
    for n_threads in range(count_cores(), 0, -1):
        if held_bytes + fit_bytes(problem, n_threads) <= means.memory_bytes:
            break
    if not means.force:
        refuse_too_much(job, held_bytes + fit_bytes(problem, n_threads), means)
    return n_threads


def refuse_too_much(job: Fit, needed_bytes: int, means: Means) -> None:
    """Refuse a fit that the memory limit, or this machine's memory, does not suffice for."""
    check_memory(needed_bytes, means.memory_bytes, f"the probe of layer {job.layer} at {job.latents}")
