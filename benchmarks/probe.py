"""Probes out of core beside scikit-learn's logistic regression in RAM: time, memory, and what bounds a pass.

    python benchmarks/probe.py [--folder tmp/benchmarks] [--rows 20000 100000] [--parts speed memory passes]

The features are those of features.py: 4,096 of a conv layer, 200 classes. satstore reads them as float16 from
a Zarr store as extract writes it; scikit-learn has them as float32 in RAM. Both have the same BLAS threads.

speed   the time to the objective at which scikit-learn's lbfgs stops (tol 1e-4), and to the one that saga
        has after 5 epochs on 5,000 rows.
memory  the peak of a fit's resident memory, in a process of its own, above that process's memory with torch
        loaded; and the time, at both numbers of rows: the exponent says how time grows with rows.
passes  one pass from disk beside one over the same features in RAM, and beside the machine's sgemm.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from features import make_store
from threadpoolctl import threadpool_limits

from satstore.analysis.logistic.engine import ThreadEngine, start_tile_threads
from satstore.analysis.logistic.estimator import LogisticProbe
from satstore.analysis.logistic.loss import LossQuery
from satstore.analysis.logistic.solver import Objective
from satstore.analysis.row_source import ArrayRows
from satstore.storage.zarr import open_latents
from satstore.system.memory import peak_bytes, reset_peak, resident_bytes

LIMIT_BYTES = 512 * 2**20


def open_layer(store: Path) -> tuple[Any, np.ndarray]:
    split = open_latents(store).split("pool4", "train")
    [layer] = split
    return split[layer], split.labels


class Watch:
    """Notes time and objective of every evaluation of a fit."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.start = time.perf_counter()

    def __enter__(self) -> "Watch":
        self._original = original = Objective.__call__

        def noting(objective: Objective, *arguments: Any) -> Any:
            found = original(objective, *arguments)
            self.points.append((time.perf_counter() - self.start, float(found.value[0])))
            return found

        Objective.__call__ = noting  # type: ignore[method-assign]
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        Objective.__call__ = self._original  # type: ignore[method-assign]

    def time_to(self, objective: float) -> float:
        return next((t for t, value in self.points if value <= objective), float("nan"))

    def passes_to(self, objective: float) -> int:
        return 1 + next((i for i, (_, value) in enumerate(self.points) if value <= objective), -2)


def objective_of(model: Any, features: np.ndarray, labels: np.ndarray) -> float:
    """½‖W‖² + Σ loss, from its definition."""
    logits = features @ model.coef_.T.astype(np.float32) + model.intercept_.astype(np.float32)
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    return 0.5 * float(np.square(model.coef_).sum()) + float(losses.sum())


def measure_speed(store: Path) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    layer, labels = open_layer(store)
    features = layer.numpy().reshape(len(labels), -1).astype(np.float32)
    found: dict[str, Any] = {}
    few = slice(0, 5000)
    peers = {
        "lbfgs": (LogisticRegression(tol=1e-4, max_iter=1000), slice(None)),
        "saga": (LogisticRegression(solver="saga", max_iter=5), few),
    }
    for name, (peer, part) in peers.items():
        x, y = features[part], labels[part]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = time.perf_counter()
            peer.fit(x, y)
            peer_s = time.perf_counter() - start
        goal = objective_of(peer, x, y)
        with Watch() as watch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # In blocks of the store for all rows; the few are a part that no store holds, so in RAM.
            LogisticProbe(max_iter=40).fit(layer.rows() if part == slice(None) else x, y)
        found[name] = {
            "rows": len(y),
            "objective": goal,
            "scikit_learn_s": peer_s,
            "scikit_learn_iterations": int(np.max(peer.n_iter_)),
            "satstore_s": watch.time_to(goal),
            "satstore_passes": watch.passes_to(goal),
            "ratio": peer_s / watch.time_to(goal),
        }
    return found


def measure_passes(store: Path, turns: int) -> dict[str, float]:
    layer, labels = open_layer(store)
    classes, codes = np.unique(labels, return_inverse=True)
    random = np.random.default_rng(0)
    weights = random.standard_normal((1, len(classes), layer.n_features), dtype=np.float32) / 100
    query = LossQuery(weights, np.zeros((1, len(classes)), np.float32))
    ram = ArrayRows(layer.numpy().reshape(len(labels), -1).astype(np.float32))
    left, right = (random.standard_normal((2048, 2048), dtype=np.float32) for _ in range(2))
    times: dict[str, list[float]] = {"disk": [], "ram": [], "sgemm": []}
    # With the same threads, as the passes of a fit are; the first turn fills its scratch and the file cache.
    with start_tile_threads() as threads:
        engines = {
            name: ThreadEngine(rows, codes, len(classes), threads)
            for name, rows in (("disk", layer.rows()), ("ram", ram))
        }
        for turn in range(turns + 1):
            for name, engine in engines.items():
                seconds = timed(lambda engine=engine: engine.sums(query))
                times[name] += [seconds] if turn else []
    for _ in range(turns):
        times["sgemm"].append(timed(lambda: left @ right))
    medians = {name: statistics.median(values) for name, values in times.items()}
    flops = 4 * len(labels) * layer.n_features * len(classes)
    rate, peak = flops / medians["ram"] / 1e9, 2 * 2048**3 / medians["sgemm"] / 1e9
    return {
        "disk_s": medians["disk"],
        "ram_s": medians["ram"],
        "disk_to_ram": statistics.median(d / r for d, r in zip(times["disk"], times["ram"], strict=True)),
        "ram_gflops": rate,
        "sgemm_gflops": peak,
        "share_of_sgemm": rate / peak,
    }


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def fit_alone(store: Path, max_iter: int) -> None:
    """Fit in this process, and print what it took; run by measure_memory."""
    import torch  # noqa: F401  # what a probe's process holds anyway

    layer, labels = open_layer(store)
    reset_peak()
    before = resident_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = timed(lambda: LogisticProbe(max_iter=max_iter).fit(layer.rows(), labels))
    print(json.dumps({"rows": len(labels), "peak_bytes": peak_bytes() - before, "seconds": seconds}))


def measure_memory(stores: list[Path], threads: int, max_iter: int) -> dict[str, Any]:
    runs = []
    for store in stores:
        command = [sys.executable, __file__, "--alone", str(store), "--iterations", str(max_iter)]
        environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        runs.append(json.loads(done.stdout))
    few, many = runs[0], runs[-1]
    exponent = np.log(many["seconds"] / few["seconds"]) / np.log(many["rows"] / few["rows"])
    return {"limit_bytes": LIMIT_BYTES, "fits": runs, "exponent": float(exponent)}


def print_table(results: dict[str, Any]) -> None:
    for name, row in results.get("speed", {}).items():
        print(
            f"to scikit-learn's {name} ({row['rows']} rows, objective {row['objective']:.0f}): "
            f"scikit-learn {row['scikit_learn_s']:.1f} s, satstore {row['satstore_s']:.1f} s "
            f"({row['satstore_passes']} passes), {row['ratio']:.1f} times less"
        )
    memory = results.get("memory")
    for row in memory["fits"] if memory else ():
        print(f"{row['rows']} rows: {row['seconds']:.1f} s, peak {row['peak_bytes'] / 2**20:.0f} MiB")
    if memory:
        print(f"time grows with rows to the power of {memory['exponent']:.2f}")
    if passes := results.get("passes"):
        print(
            f"a pass from disk {passes['disk_s']:.2f} s, in RAM {passes['ram_s']:.2f} s "
            f"(ratio {passes['disk_to_ram']:.2f}); {passes['ram_gflops']:.0f} of "
            f"{passes['sgemm_gflops']:.0f} GFLOP/s ({passes['share_of_sgemm']:.0%})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("tmp/benchmarks"))
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--parts", nargs="+", default=["speed", "memory", "passes"])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="BLAS threads, of both sides")
    parser.add_argument("--iterations", type=int, default=20, help="of the fits whose memory is measured")
    parser.add_argument("--turns", type=int, default=7, help="of the passes")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.alone:
        fit_alone(options.alone, options.iterations)
        return
    stores = [make_store(options.folder, rows) for rows in options.rows]
    results: dict[str, Any] = {"threads": options.threads}
    with threadpool_limits(options.threads):
        if "passes" in options.parts:
            results["passes"] = measure_passes(stores[0], options.turns)
        if "speed" in options.parts:
            results["speed"] = measure_speed(stores[0])
    if "memory" in options.parts:
        results["memory"] = measure_memory(stores, options.threads, options.iterations)
    if options.json:
        print(json.dumps(results))
    else:
        print_table(results)


if __name__ == "__main__":
    main()
