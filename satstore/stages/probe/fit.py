"""Fit the probes of one layer, and of many layers one after the other or side by side."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.logistic.evaluation import EvaluationQuery, EvaluationSums
from satstore.analysis.logistic.memory import problems_at_once
from satstore.analysis.logistic.problem import LogisticProblem
from satstore.analysis.logistic.solver import Solution, solve
from satstore.errors import ConfigError, NumericsError, SatstoreError
from satstore.stages.probe.backends import Backend
from satstore.stages.probe.job import ProbeJob, ProbeResult
from satstore.stages.probe.latents import check_layer, check_train_classes

TOP = 5
# Confusion matrices of all positions are kept up to here; a table of accuracies says the rest.
CONFUSIONS_BYTES = 64 * 2**20


def fit_layers(
    jobs: Sequence[ProbeJob], backend: Backend
) -> Iterator[tuple[ProbeJob, ProbeResult | SatstoreError]]:
    """Fit layers and yield each as it is done, with its result or the error that it failed with."""
    if not jobs:
        return
    if backend.n_layers_at_once == 1:
        with backend:
            for job in jobs:
                yield job, _fit_or_fail(job, backend)
        return
    # On Ctrl-C, the backend ends first, and the layers that are under way fail for want of it.
    with ThreadPoolExecutor(backend.n_layers_at_once) as drivers, backend:
        futures = {drivers.submit(_fit_or_fail, job, backend): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            drivers.shutdown(wait=False, cancel_futures=True)


def _fit_or_fail(job: ProbeJob, backend: Backend) -> ProbeResult | SatstoreError:
    try:
        return fit_layer(job, backend)
    except SatstoreError as error:
        return error


def fit_layer(job: ProbeJob, backend: Backend) -> ProbeResult:
    """Fit one layer's probes and evaluate them; of latents that allow none, the row says why.

    Raises
    ------
    NotFoundError, CorruptError
        If the latents aren't there, or can't be read.
    MemoryLimitError
        If the memory limit, or this machine's memory, is too small for them.
    ClusterError
        If the cluster lost what it was computing.
    """
    started = time.perf_counter()
    with backend.peaks.watch_fit() as peak:
        check_layer(job.latents, job.layer)
        train = job.open("train")
        row = {"layer": job.layer, "n_features": train.shape[-1] if job.axes else train.n_features}
        try:
            check_train_classes(job.latents)
            fitted = solve_and_evaluate(job, backend)
        except (NumericsError, ConfigError) as error:
            return ProbeResult(({**row, "converged": False, "error": str(error)},))
        row |= {"duration_s": round(time.perf_counter() - started, 3), "peak_memory_bytes": peak()}
    return ProbeResult(tuple({**row, **of_position} for of_position in fitted.rows()), fitted.arrays())


def solve_and_evaluate(job: ProbeJob, backend: Backend) -> "EvaluatedProbes":
    """Fit one layer's probe, or one for each position, to the train split, and evaluate it on both."""
    problem = job.problem()
    with backend.engines(job, problem) as engines:
        n_at_once = problems_at_once(problem, backend.memory.free_bytes())
        solution = solve(engines["train"], problem, n_at_once)
        confused = problem.n_positions * problem.n_classes**2 * 8 <= CONFUSIONS_BYTES
        query = EvaluationQuery(*solution.model(np.float32), top=TOP, confused=confused)
        on_train, on_eval = (engines[split].sums(query) for split in ("train", "eval"))
    return EvaluatedProbes(
        job=job,
        problem=problem,
        solution=solution,
        on_train=on_train,
        on_eval=on_eval,
        n_eval=job.open("eval").shape[0],
    )


@dataclass(frozen=True, kw_only=True)
class EvaluatedProbes:
    """One layer's probes, one per position, and their sums over the samples of both splits."""

    job: ProbeJob
    problem: LogisticProblem
    solution: Solution
    on_train: EvaluationSums
    on_eval: EvaluationSums
    n_eval: int

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield what the table says of each position."""
        n_train, n_eval, solution = self.problem.n_rows, self.n_eval, self.solution
        for position, place in enumerate(np.ndindex(*self.job.axes)):
            yield {
                **dict(zip(("y", "x"), place, strict=False)),
                "train_accuracy": int(self.on_train.right[position]) / n_train,
                "eval_accuracy": int(self.on_eval.right[position]) / n_eval,
                "top5": int(self.on_eval.top[position]) / n_eval,
                "train_loss": float(self.on_train.loss[position]) / n_train,
                "objective": float(solution.objective[position]),
                "n_iter": int(solution.n_iterations[position]),
                "converged": bool(solution.converged[position]),
            }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what goes to the store: with the axes y and x first, if each position has a probe."""
        axes = self.job.axes
        arrays: dict[str, NDArray[Any]] = {
            "coef": self.solution.weights,
            "intercept": self.solution.intercept,
        }
        arrays |= {"confusion": self.on_eval.confusion} if self.on_eval.confusion.size else {}
        arrays = {name: array.reshape(*axes, *array.shape[1:]) for name, array in arrays.items()}
        arrays |= {"accuracy": self.on_eval.right.reshape(axes) / self.n_eval} if axes else {}
        return arrays | {"class_index": self.job.latents.classes}
