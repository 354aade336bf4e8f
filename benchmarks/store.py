"""Bytes and MB/s of satstore's encoding beside the original's pickles, Zarr's defaults and Zarr with zstd.

    python benchmarks/store.py [--rows 4000] [--features 4096] [--turns 3] [--json]

On the features of a small conv net, its weights at random, of scikit-learn's digits, pooled to
4 × 4. Rates are of float32 whatever is stored, to compare; the page cache is warm. The second table
has a linear probe's accuracy on them, by bits of mantissa kept.
"""

import argparse
import json
import pickle
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import nn
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from satstore.store.halves import round_mantissa

Floats = NDArray[np.floating[Any]]
SHARD_ROWS = 1024


def make_features(images: torch.Tensor, n_features: int) -> NDArray[np.float32]:
    """Return the pooled maps of a conv net on images (n, 1, 8, 8), scaled up to 16 px."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, n_features // 16, 3, padding=1),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
    )
    with torch.no_grad():
        return torch.cat([net(part) for part in images.split(100)]).numpy()


def write_zarr(path: Path, values: Floats, **options: Any) -> None:
    array = zarr.create_array(path, shape=values.shape, dtype=values.dtype, **options)
    array[...] = values


def read_zarr(path: Path) -> Floats:
    return np.asarray(zarr.open_array(path, mode="r")[...])


def read_pickle(path: Path) -> Floats:
    with path.open("rb") as file:
        values: Floats = pickle.load(file)
    return values


def encodings(
    values: NDArray[np.float32],
) -> dict[str, tuple[Callable[[Path], Any], Callable[[Path], Floats]]]:
    """Return each encoding's writer and reader."""
    chunks = (max(1, 2**20 // values.shape[1]), values.shape[1])
    shards = {"chunks": chunks, "shards": (-(-SHARD_ROWS // chunks[0]) * chunks[0], values.shape[1])}
    blosc = [BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()]

    def halves(n_bits: int) -> NDArray[np.float16]:
        rounded = values.astype(np.float16)
        round_mantissa(rounded, n_bits)
        return rounded

    found: dict[str, Any] = {
        "float32 pickle": (lambda p: p.write_bytes(pickle.dumps(values, protocol=4)), read_pickle),
        "zarr defaults": (lambda p: write_zarr(p, values), read_zarr),
        "zarr zstd": (lambda p: write_zarr(p, values, compressors=[ZstdCodec(level=3)], **shards), read_zarr),
    }
    for bits in (10, 7, 5, 4, 3):
        found[f"satstore, {bits} bits"] = (
            lambda p, bits=bits: write_zarr(p, halves(bits), compressors=blosc, fill_value=np.nan, **shards),
            read_zarr,
        )
    return found


def size_of(path: Path) -> int:
    return (
        sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        if path.is_dir()
        else path.stat().st_size
    )


def measure_bytes(values: NDArray[np.float32], turns: int) -> dict[str, dict[str, float]]:
    kinds = encodings(values)
    times: dict[str, dict[str, list[float]]] = {name: {"write": [], "read": []} for name in kinds}
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(turns):
            for name, (write, read) in kinds.items():
                path = Path(folder) / "data"
                started = time.perf_counter()
                write(path)
                written = time.perf_counter()
                read(path)
                times[name]["write"].append(written - started)
                times[name]["read"].append(time.perf_counter() - written)
                sizes[name] = size_of(path)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return {
        name: {
            "share_of_float32": sizes[name] / values.nbytes,
            "write_mb_per_s": values.nbytes / 1e6 / statistics.median(times[name]["write"]),
            "read_mb_per_s": values.nbytes / 1e6 / statistics.median(times[name]["read"]),
        }
        for name in kinds
    }


def measure_accuracy(values: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    train, held_out = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=labels, random_state=0)
    found = {}
    for bits in (10, 7, 5, 4, 3):
        rounded = values.astype(np.float16)
        round_mantissa(rounded, bits)
        rows = (rounded.astype(np.float32) - values.mean(0)) / (values.std(0) + 1e-6)
        probe = LogisticRegression(max_iter=50, tol=1e-2).fit(rows[train], labels[train])
        found[str(bits)] = float(probe.score(rows[held_out], labels[held_out]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    bunch = load_digits()
    images = torch.from_numpy(bunch.images / 16).float()[:, None]
    features = make_features(images[: options.rows], options.features)
    values = np.resize(features, (options.rows, features.shape[1]))
    figures = measure_bytes(values, options.turns)
    accuracy = measure_accuracy(features[:, ::8], bunch.target[: options.rows])
    if options.json:
        print(json.dumps(vars(options) | {"encodings": figures, "accuracy": accuracy}))
        return
    print(f"{values.shape[0]} × {values.shape[1]}, {values.nbytes / 1e6:.0f} MB of float32")
    for name, row in figures.items():
        rates = f"{row['write_mb_per_s']:8.0f} MB/s written {row['read_mb_per_s']:8.0f} MB/s read"
        print(f"{name:18} {row['share_of_float32']:7.1%} {rates}")
    for bits, share in accuracy.items():
        print(f"{bits:>2} mantissa bits: probe accuracy {share:.2%}")


if __name__ == "__main__":
    main()
