"""Measure how far and how fast latents are compressed in a store, in memory."""

import time
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from satstore.storage.zarr.layout import (
    FLOAT16_BYTES,
    FLOAT16_MANTISSA_BITS,
    Array,
    choose_chunk_rows,
    create_array,
)
from satstore.storage.zarr.precision import Extent, choose_precision


def encoded_ratio(latents: NDArray[Any], mantissa_bits: int = FLOAT16_MANTISSA_BITS) -> float:
    """Measure the stored bytes of latents (n, …) per byte of float16."""
    with np.errstate(over="ignore"):
        values = latents.astype(np.float32)
    precision = choose_precision(Extent.of(values), mantissa_bits)
    store = _encode(precision.round(values), mantissa_bits)[1]
    return sum(len(part) for key, part in store.items() if "/c/" in key) / (FLOAT16_BYTES * values.size)


def encoding_rates() -> tuple[float, float]:
    """Measure how many bytes of float16 are encoded and decoded per second, on noise."""
    values = np.random.default_rng(0).standard_normal((16384, 1024), np.float32).astype(np.float16)
    seconds = []
    for _ in range(3):  # other processes can only add to the time
        started = time.perf_counter()
        array, _ = _encode(values)
        encoded = time.perf_counter()
        array[...]
        seconds.append((encoded - started, time.perf_counter() - encoded))
    encoding, decoding = map(min, zip(*seconds, strict=True))
    return values.nbytes / encoding, values.nbytes / decoding


def _encode(
    values: NDArray[np.floating[Any]], mantissa_bits: int = FLOAT16_MANTISSA_BITS
) -> tuple[Array, dict[str, Any]]:
    """Encode an array to memory as in a store; return it, and the objects by key."""
    store: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(store))
    chunks = (choose_chunk_rows(values.shape[1:], len(values), values.itemsize), *values.shape[1:])
    dimensions = ("sample", *(f"axis{axis}" for axis in range(1, values.ndim)))
    array = create_array(
        group, "latent", values.shape, values.dtype, dimensions, mantissa_bits=mantissa_bits, chunks=chunks
    )
    array[...] = values
    return array, store
