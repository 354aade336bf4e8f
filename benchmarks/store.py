"""Bytes and MB/s of satstore's stores beside the original's pickles, Zarr's defaults and Zarr with zstd.

    python benchmarks/store.py [--folder tmp/benchmarks] [--rows 4000] [--turns 5] [--json]

On the features of features.py: 4,096 of a conv layer, 200 classes. Rates are of float32, whatever is stored;
the page cache is warm. satstore's writing is that of an extraction: with moments, digests and fsync, which
the others leave out. The second table has a probe's accuracy, by bits of mantissa kept. The third has three
codecs of the same bytes: satstore's, zarr-python's, and zarrs', where that package is installed.
"""

import argparse
import json
import pickle
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from features import N_CLASSES, compute_features, digit_pairs, train_net, write_features
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from satstore import LogisticProbe
from satstore.analysis.floats import widen
from satstore.storage.zarr import open_latents
from satstore.storage.zarr.layout import Array, choose_chunk_rows, create_array
from satstore.storage.zarr.precision import round_mantissa
from satstore.storage.zarr.shard_codec import ShardReader, encode_shard, shard_key

Floats = NDArray[np.floating[Any]]
SHARD_ROWS = 1024
BITS = (10, 7, 5, 4, 3)


def write_zarr(path: Path, values: Floats, **options: Any) -> None:
    array = zarr.create_array(path, shape=values.shape, dtype=values.dtype, **options)
    array[...] = values


def read_zarr(path: Path) -> Floats:
    return np.asarray(zarr.open_array(path, mode="r")[...])


def read_pickle(path: Path) -> Floats:
    with path.open("rb") as file:
        values: Floats = pickle.load(file)
    return values


def write_store(path: Path, values: NDArray[np.float32], n_bits: int) -> None:
    parts = np.array_split(values.reshape(len(values), 256, 4, 4), max(1, len(values) // 256))
    write_features(path / "latents.zarr", "train", parts, np.arange(len(values)) % N_CLASSES, n_bits)


def read_store(path: Path) -> Floats:
    [layer] = open_latents(path / "latents.zarr").split("pool4", "train").values()
    rows = layer.rows()
    values = np.empty(rows.shape, np.float32)
    for start in range(0, len(values), 1024):
        stop = min(start + 1024, len(values))
        rows.load_floats(start, stop, values[start:stop])
    return values


def encodings(
    values: NDArray[np.float32],
) -> dict[str, tuple[Callable[[Path], Any], Callable[[Path], Floats]]]:
    """Return each encoding's writer and reader."""
    chunks = (max(1, 2**20 // values.shape[1]), values.shape[1])
    shards = {"chunks": chunks, "shards": (-(-SHARD_ROWS // chunks[0]) * chunks[0], values.shape[1])}
    found: dict[str, Any] = {
        "float32 pickle": (lambda p: p.write_bytes(pickle.dumps(values, protocol=4)), read_pickle),
        "zarr defaults": (lambda p: write_zarr(p, values), read_zarr),
        "zarr zstd": (lambda p: write_zarr(p, values, compressors=[ZstdCodec(level=3)], **shards), read_zarr),
    }
    for bits in BITS:
        found[f"satstore, {bits} bits"] = (lambda p, bits=bits: write_store(p, values, bits), read_store)
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


def measure_codecs(values: NDArray[np.float32], turns: int) -> dict[str, dict[str, float]]:
    """Return MB of float32 per CPU second, by codec: of writing shards, reading them, and reading tiles."""
    rows = np.ascontiguousarray(values.reshape(len(values), 256, 4, 4), np.float16)
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            for name in ("satstore", "zarr", "zarrs"):
                if name != "zarrs" or find_spec("zarrs"):
                    rates = time_codec(name, Path(folder) / f"{name}-{turn}", rows)
                    found.setdefault(name, []).append(rates)
    return {
        name: {what: statistics.median(rates[what] for rates in each) for what in each[0]}
        for name, each in found.items()
    }


def time_codec(name: str, path: Path, rows: NDArray[np.float16]) -> dict[str, float]:
    """Write and read rows in whole shards, then in tiles of a chunk; return MB of float32 per CPU second."""
    n_chunk = choose_chunk_rows(rows.shape[1:], len(rows), rows.itemsize)
    n_shard = max(1, SHARD_ROWS // n_chunk) * n_chunk
    pipeline = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"} if name == "zarrs" else {}
    with zarr.config.set({"threading.max_workers": 1, **pipeline}):
        array = create_array(
            zarr.create_group(path),
            "latent",
            rows.shape,
            rows.dtype,
            ("sample", "channel", "y", "x"),
            chunks=(n_chunk, *rows.shape[1:]),
            shards=(n_shard, *rows.shape[1:]),
        )
    write, read = (shard_codec if name == "satstore" else zarr_codec)(path / "latent", array)
    shards = [slice(s, s + n_shard) for s in range(0, len(rows) - n_shard + 1, n_shard)]
    tiles = [slice(s, s + n_chunk) for s in range(0, len(shards) * n_shard, n_chunk)]
    out = np.empty((n_shard, rows[0].size), np.float32)
    times = [time.process_time()]
    for part in shards:
        write(part, rows[part])
    times.append(time.process_time())
    for parts in (shards, tiles):
        for part in parts:
            read(part, out[: part.stop - part.start])
        times.append(time.process_time())
    n_mb = len(shards) * out.nbytes / 1e6
    return {
        what: float(n_mb / s) for what, s in zip(("write", "shards", "tiles"), np.diff(times), strict=True)
    }


Codec = tuple[Callable[[slice, Floats], object], Callable[[slice, NDArray[np.float32]], object]]


def shard_codec(path: Path, array: Array) -> Codec:
    """Return satstore's writer of whole shards and its reader of rows."""
    reader = ShardReader(path, array)

    def write(part: slice, rows: Floats) -> None:
        file = path / shard_key(array, part.start // len(rows))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"".join(encode_shard(array, rows)))

    return write, lambda part, out: reader.read_floats(part.start, part.stop, out)


def zarr_codec(_: Path, array: Array) -> Codec:
    """Return the same of Zarr, with the pipeline that the array was made with."""
    return array.__setitem__, lambda part, out: widen(np.asarray(array[part]).reshape(len(out), -1), out)


def measure_accuracy(
    train: tuple[Floats, NDArray[np.int64]], unseen: tuple[Floats, NDArray[np.int64]]
) -> dict[str, float]:
    found = {}
    for bits in BITS:
        (seen, labels), (others, other_labels) = (
            (halves(values, bits), labels) for values, labels in (train, unseen)
        )
        found[str(bits)] = float(LogisticProbe().fit(seen, labels).score(others, other_labels))
    return found


def halves(values: Floats, n_bits: int) -> NDArray[np.float16]:
    rounded = values.astype(np.float16)
    round_mantissa(rounded, n_bits)
    return rounded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("tmp/benchmarks"))
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    net, sets = train_net(options.folder), []
    for split, n in (("train", options.rows), ("eval", options.rows // 2)):
        images, labels = digit_pairs(n, split=split)
        sets.append((np.concatenate(list(compute_features(net, images))).reshape(n, -1), labels))
    values = sets[0][0]
    figures = measure_bytes(values, options.turns)
    accuracy, codecs = measure_accuracy(*sets), measure_codecs(values, options.turns)
    if options.json:
        found = {"rows": options.rows, "encodings": figures, "accuracy": accuracy, "codecs": codecs}
        print(json.dumps(found))
        return
    print(f"{values.shape[0]} × {values.shape[1]}, {values.nbytes / 1e6:.0f} MB of float32")
    for name, row in figures.items():
        rates = f"{row['write_mb_per_s']:8.0f} MB/s written {row['read_mb_per_s']:8.0f} MB/s read"
        print(f"{name:18} {row['share_of_float32']:7.1%} {rates}")
    for bits, share in accuracy.items():
        print(f"{bits:>2} mantissa bits: probe accuracy {share:.2%}")
    for name, rates in codecs.items():
        told = ", ".join(f"{what} {rate:.0f}" for what, rate in rates.items())
        print(f"{name}, MB of float32 per CPU second: {told}")


if __name__ == "__main__":
    main()
