"""The stage ``probe``: a logistic regression on every layer's latents."""

import multiprocessing
import os
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import Field

from satstore.config import pooling_key
from satstore.errors import ConfigError, CorruptError, NumericsError
from satstore.manifest import Manifest
from satstore.processes import deaf_children, follow_main_process
from satstore.run import Run
from satstore.stages.stage import DeviceOfNeeds, Overwrite, Poolings, Stage, StageParameters, poolings_of


class ProbeParameters(StageParameters):
    """Parameters of ``probe``."""

    device: DeviceOfNeeds = None
    pooling: Poolings = None
    workers: Annotated[
        int,
        Parameter(name=["--workers", "-mp"]),
        Field(ge=1, description="processes that fit layers side by side, sharing the cores"),
    ] = 1
    C: Annotated[
        float, Parameter(name="-C"), Field(gt=0, description="inverse of the regularisation's strength")
    ] = 1.0
    tol: Annotated[float, Field(gt=0, description="largest gradient entry of the mean loss at the end")] = (
        1e-4
    )
    max_iter: Annotated[int, Field(ge=1, description="iterations at most")] = 1000
    overwrite: Overwrite = False


@dataclass(frozen=True)
class Fit:
    """What is to be fitted: one layer of one pooling."""

    path: Path
    key: str
    layer: str
    parameters: ProbeParameters
    n_threads: int


@dataclass(frozen=True)
class Fitted:
    """A layer's row of the table, and the arrays that go to the store; the row of a failed layer says why."""

    row: dict[str, Any]
    arrays: dict[str, Any] = field(default_factory=dict)


def settings(run: Run, key: str, parameters: ProbeParameters) -> dict[str, Any]:
    """Return what a pooling's probes depend on."""
    latents = run.manifest.latents.get(key)
    return {
        "latents": latents.digest if latents else None,
        "C": parameters.C,
        "tol": parameters.tol,
        "max_iter": parameters.max_iter,
    }


def pending_layers(run: Run, key: str, parameters: ProbeParameters) -> list[str]:
    """Return the layers of a pooling that are not fitted yet, or were fitted on latents that are gone.

    Raises
    ------
    ConfigError
        If they were fitted with other settings, and are not to be overwritten.
    """
    known = run.manifest.probes.get(key)
    if parameters.overwrite or known is None or not run.has_file(f"probe-{key}.csv"):
        return run.layers
    wanted = settings(run, key, parameters)
    if known["latents"] != wanted["latents"]:
        return run.layers
    if known != wanted:
        old = ", ".join(f"{name} {known[name]}" for name in ("C", "tol", "max_iter"))
        raise ConfigError(
            f"the probes of {run.name} at {key} were fitted with {old}; to replace them: --overwrite"
        )
    fitted = set(run.table(f"probe-{key}")["layer"])
    return [layer for layer in run.layers if layer not in fitted]


def pending(run: Run, parameters: ProbeParameters) -> list[str]:
    """Say which layers of which poolings are not fitted."""
    keys = map(pooling_key, poolings_of(run, parameters))
    return [f"{layer} at {key}" for key in keys for layer in pending_layers(run, key, parameters)]


def probe(run: Run, parameters: ProbeParameters) -> None:
    """Fit what is missing; each layer's result is committed as it is done."""
    n_threads = max(1, (os.cpu_count() or 1) // parameters.workers)
    todo = []
    for key in map(pooling_key, poolings_of(run, parameters)):
        layers = pending_layers(run, key, parameters)
        if layers == run.layers:
            begin(run, key, parameters)
        todo += [Fit(run.path, key, layer, parameters, n_threads) for layer in layers]
    errors = []
    for done, (job, fitted) in enumerate(fit_all(todo, parameters.workers), start=1):
        if isinstance(fitted, Fitted):
            commit(run, job, fitted)
        else:
            errors.append(fitted)
        run.emit("probe", "progress", f"{job.layer} at {job.key}", done=done, total=len(todo))
    if errors:  # after all other layers were fitted; these are pending until what is wrong is mended
        raise errors[0]


def begin(run: Run, key: str, parameters: ProbeParameters) -> None:
    """Let go of a pooling's old probes and note what the new ones depend on."""

    def change(manifest: Manifest) -> None:
        manifest.files.pop(f"probe-{key}.csv", None)
        manifest.probes[key] = settings(run, key, parameters)
        manifest.summary.probe_accuracy.pop(key, None)

    run.commit(change=change)


def fit_all(todo: list[Fit], workers: int) -> Iterator[tuple[Fit, "Fitted | CorruptError"]]:
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
        finally:
            pool.shutdown(cancel_futures=True)


def try_fit(job: Fit) -> "Fitted | CorruptError":
    """Fit one layer, or return why its latents can't be read."""
    try:
        return fit(job)
    except CorruptError as error:
        return error


def fit(job: Fit) -> Fitted:
    """Fit one layer's probe and evaluate it on both splits; the row of latents that allow no probe says why.

    Raises
    ------
    CorruptError
        If the latents can't be read.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    from satstore.analysis.logistic import LogisticProbe, evaluate

    started = time.perf_counter()
    parameters = job.parameters
    run = Run(job.path)
    row: dict[str, Any] = {"layer": job.layer, "index": run.layers.index(job.layer)}
    try:
        train, held_out = (run.latents(job.key, split) for split in ("train", "eval"))
        row["n_features"] = train[job.layer].n_features
        probe = LogisticProbe(C=parameters.C, tol=parameters.tol, max_iter=parameters.max_iter)
        with threadpool_limits(job.n_threads), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the table says it, and the parent warns
            probe.fit(train[job.layer].rows(), train.labels)
            seen = evaluate(probe, train[job.layer].rows(), train.labels)
            unseen = evaluate(probe, held_out[job.layer].rows(), held_out.labels)
    except (NumericsError, ConfigError) as error:
        return Fitted({**row, "converged": False, "error": str(error)})
    row |= {
        "train_accuracy": seen.accuracy,
        "eval_accuracy": unseen.accuracy,
        "top5": unseen.top_accuracy,
        "train_loss": seen.loss,
        "objective": probe.objective_,
        "n_iter": int(probe.n_iter_),
        "converged": bool(probe.converged_),
        "duration_s": round(time.perf_counter() - started, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        "error": "",
    }
    arrays = {"coef": probe.coef_, "intercept": probe.intercept_, "confusion": unseen.confusion}
    return Fitted(row, arrays)


def peak_memory_bytes() -> int:
    """Return the most resident memory that this process has had, its libraries included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


COLUMNS = (
    "layer",
    "index",
    "n_features",
    "train_accuracy",
    "eval_accuracy",
    "top5",
    "train_loss",
    "objective",
    "n_iter",
    "converged",
    "duration_s",
    "peak_memory_bytes",
    "error",
)


def commit(run: Run, job: Fit, fitted: Fitted) -> None:
    """Commit one layer: its arrays, then its row."""
    import pandas as pd

    from satstore.store import AnalysisStore

    name = f"probe-{job.key}"
    if fitted.arrays:
        AnalysisStore(run.analysis_path, run.commits).write_probe(job.key, job.layer, fitted.arrays)
    if fitted.row.get("error"):
        run.warn("probe", f"layer {job.layer} at {job.key} has no probe: {fitted.row['error']}")
    elif not fitted.row["converged"]:
        run.warn(
            "probe", f"layer {job.layer} at {job.key} did not converge in {fitted.row['n_iter']} iterations"
        )
    rows = run.table(name).to_dict("records") if run.has_file(f"{name}.csv") else []
    table = pd.DataFrame([*rows, fitted.row], columns=list(COLUMNS)).sort_values("index")

    def change(manifest: Manifest) -> None:
        accuracy = fitted.row.get("eval_accuracy")
        manifest.summary.probe_accuracy.setdefault(job.key, {})[job.layer] = accuracy

    run.commit({f"{name}.csv": table.to_csv(index=False).encode()}, change)


STAGE = Stage(
    name="probe",
    description="Fit a linear probe on every layer's latents.",
    function=probe,
    pending=pending,
    parameters=ProbeParameters,
    needs=("train", "extract"),
    table="probe-{pooling}",
)
