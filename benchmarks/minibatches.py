"""MB/s of minibatches of latents in random order, beside random rows by zarr, tensorstore and a memmap.

    python benchmarks/minibatches.py [--folder tmp/benchmarks] [--rows 50000] [--batch 256] [--turns 5]
                                     [--json]

On the features of features.py: 4,096 float16 of a conv layer, in a store as satstore's extract writes it. The
readers take turns: satstore makes a pass over all rows, the wait for its first buffer included; the others
read random batches for two seconds, or one pass. A first turn, in which workers start, isn't counted. Every
batch is summed up, as a training would read it. Rates are of float16, from the page cache: the median, the
best turn, and MB per CPU second of all processes. zarr and tensorstore decode a whole chunk for each row, in
sorted order or not. The memmap is of the same values, not compressed: a bound of what can be read.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tensorstore
import torch
from features import LAYER, make_store
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from satstore.storage.zarr import LatentArray, open_latents

SECONDS = 2.0
"""The time of a turn of the slow readers."""

Begin = Callable[[int], Iterator[NDArray[np.float16]]]
"""Begins a turn by its number: yields batches."""


def make_readers(latents: LatentArray, folder: Path, batch_size: int) -> dict[str, Begin]:
    """Return the readers by name; writes the memmap's file."""
    path = folder / "uncompressed.npy"
    np.save(path, latents.numpy())
    copy, array = np.load(path, mmap_mode="r"), latents.array
    place = f"file://{array.store.root.absolute() / array.path}/"
    stored = tensorstore.open({"driver": "zarr3", "kvstore": place}, open=True).result()
    others = {
        "zarr oindex": lambda rows: array.oindex[rows],
        "zarr, sorted rows": lambda rows: array[np.sort(rows)],
        "tensorstore": lambda rows: stored[rows].read().result(),
        "memmap": lambda rows: copy[rows],
    }
    return {
        "satstore": read_passes(latents, batch_size, 0),
        "satstore, 2 workers": read_passes(latents, batch_size, 2),
    } | {name: read_rows(read, len(copy), batch_size) for name, read in others.items()}


def read_passes(latents: LatentArray, batch_size: int, workers: int) -> Begin:
    dataset = latents.dataset(batch_size=batch_size)
    kept = {"persistent_workers": True, "multiprocessing_context": "forkserver"} if workers else {}
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, **kept)

    def begin(turn: int) -> Iterator[NDArray[np.float16]]:
        dataset.set_epoch(turn)
        return (batch.numpy() for batch, _ in loader)

    return begin


def read_rows(read: Callable[[NDArray[np.int64]], Any], n_rows: int, batch_size: int) -> Begin:
    def begin(turn: int) -> Iterator[NDArray[np.float16]]:
        order, ends = np.random.default_rng(turn).permutation(n_rows), time.perf_counter() + SECONDS
        for start in range(0, n_rows, batch_size):
            yield np.asarray(read(order[start : start + batch_size]))
            if time.perf_counter() > ends:
                return

    return begin


def measure(batches: Iterator[NDArray[np.float16]]) -> tuple[float, float]:
    """Return MB per second, and per CPU second of this process and its workers."""
    started, began, n_bytes = time.perf_counter(), count_cpu_seconds(), 0
    for batch in batches:
        batch.reshape(-1).view(np.uint64).sum()
        n_bytes += batch.nbytes
    seconds, cpu_seconds = time.perf_counter() - started, count_cpu_seconds() - began
    return n_bytes / 1e6 / seconds, n_bytes / 1e6 / cpu_seconds


def count_cpu_seconds() -> float:
    this = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (this, *this.children(recursive=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("tmp/benchmarks"))
    parser.add_argument("--rows", type=int, default=50_000, help="rows of the store")
    parser.add_argument("--batch", type=int, default=256, help="rows of a batch")
    parser.add_argument("--turns", type=int, default=5, help="turns of each reader")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = make_store(options.folder, options.rows)
    latents = open_latents(store).split("pool4", "train")[LAYER]
    readers = make_readers(latents, store.parent, options.batch)
    turns = [
        {name: measure(begin(turn)) for name, begin in readers.items()} for turn in range(options.turns + 1)
    ]
    figures = {}
    for name in readers:
        rates, cpu_rates = zip(*(turn[name] for turn in turns[1:]), strict=True)
        figures[name] = {
            "mb_per_s": statistics.median(rates),
            "best_mb_per_s": max(rates),
            "mb_per_cpu_s": statistics.median(cpu_rates),
        }
    if options.json:
        print(json.dumps({"rows": options.rows, "batch": options.batch, "readers": figures}))
        return
    print(f"{options.rows} × {latents.n_features} float16, batches of {options.batch}")
    ours = figures["satstore"]["mb_per_s"]
    for name, row in figures.items():
        rate = row["mb_per_s"]
        print(
            f"{name:20} {rate:8.1f} MB/s, best {row['best_mb_per_s']:8.1f}, {row['mb_per_cpu_s']:8.1f} per "
            f"CPU second; satstore is {ours / rate:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
