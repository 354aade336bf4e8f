"""Writing a layer's shards, each as finely as the rows so far ask for."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satstore.storage.zarr.durable_store import DurableStore
from satstore.storage.zarr.latent_targets import Target, create_latent, describe_precision
from satstore.storage.zarr.layout import get_array
from satstore.storage.zarr.precision import FLOAT16, Extent, Float32s, StoragePrecision, choose_precision
from satstore.storage.zarr.shard_codec import encode_shard, shard_key

Look = Callable[[Target, int, NDArray[Any], NDArray[Any]], None]


class ShardWriter:
    """Writes shards of layers into a store; of one layer, one after the other and in ascending order.

    A layer is float16 as long as that keeps the spread of all its features, over the rows so far. The first
    shard that shows otherwise makes it float32 for good: what was written is encoded once more, as the values
    that it holds, none of which has lost anything. What decides is computed of the stored rows and of the
    new ones, so that who goes on after a crash decides alike.

    Parameters
    ----------
    store
        Where the layers lie; who writes commits.
    mantissa_bits
        Of float16's mantissa, those that are kept.
    look
        Called with the target, the first row, and rows as they came and as they are stored, of what was
        stored before the target was opened.
    """

    def __init__(self, store: DurableStore, mantissa_bits: int, look: Look) -> None:
        self._store, self._mantissa_bits, self._look = store, mantissa_bits, look

    def write(self, target: Target, shard: int, values: Float32s) -> None:
        """Write a shard's rows, which are rounded in place; with the last one, the layer's mean and std."""
        start = target.span(shard).start
        found = None
        if target.extent is not None:
            self._see(target, start)
            found = target.extent.joined(Extent.of(values))
            self._refine(target, shard, choose_precision(found, self._mantissa_bits))
        rows = target.precision.round(values)
        self._store.write_object(self._key(target, shard), *encode_shard(target.array, rows))
        if target.moments is not None and found is not None:
            target.moments.update(rows)
            target.extent = found.rounded(target.precision)
            target.n_seen = start + len(rows)
        target.missing.discard(shard)
        if not target.missing and target.n_samples is not None:
            self.finish(target)

    def finish(self, target: Target) -> None:
        """Write a layer's mean and standard deviation, unless they are there."""
        if target.moments is None:
            return
        assert target.n_samples is not None
        self._see(target, target.n_samples)
        with np.errstate(invalid="ignore", over="ignore"):
            get_array(target.group, "mean")[...] = target.moments.mean.astype(np.float32)
            get_array(target.group, "std")[...] = target.moments.std.astype(np.float32)
        target.moments = target.extent = None

    def _see(self, target: Target, stop: int) -> None:
        """Take in what was committed before, up to some row."""
        assert target.moments is not None
        assert target.extent is not None
        for start in range(target.n_seen, stop, target.shard_rows):
            block = np.asarray(target.array[start : min(start + target.shard_rows, stop)])
            target.moments.update(block)
            target.extent = target.extent.joined(Extent.of(block.astype(np.float32, copy=False)))
            self._look(target, start, block, block)
            target.n_seen = start + len(block)

    def _refine(self, target: Target, shard: int, needed: StoragePrecision) -> None:
        """Store a layer more finely from this shard on, if that is needed."""
        precision = target.precision.at_least(needed)
        if precision == target.precision:
            return
        if target.precision.dtype == FLOAT16:
            self._encode_anew(target, shard, precision)
            self._see(target, target.span(shard).start)
        else:
            describe_precision(target.array, precision)
        describe_precision(target.group, precision)
        target.precision = precision

    def _encode_anew(self, target: Target, shard: int, precision: StoragePrecision) -> None:
        """Replace a layer's array by one in float32, with the rows of the old one but for those of a shard.

        The log forgets all of it first: after a crash in between, the layer is written from its first row.
        """
        path, old = target.array.path, target.array
        n_shards = shard if target.n_samples is None else -(-target.n_samples // target.shard_rows)
        stored = [other for other in range(n_shards) if other != shard and other not in target.missing]
        self._store.forget(path)
        if stored:
            target.reach(target.span(stored[-1]).stop)
        self._store.remove_object(f"{path}/zarr.json")
        target.array = create_latent(
            target.group,
            old.shape,
            target.shard_rows,
            tuple(map(str, old.metadata.dimension_names or ())),  # type: ignore[union-attr]
            precision,
            self._mantissa_bits,
        )
        for other in stored:
            rows = np.asarray(old[target.span(other)])
            self._store.write_object(self._key(target, other), *encode_shard(target.array, rows))
        target.forget()

    def _key(self, target: Target, shard: int) -> str:
        return f"{target.array.path}/{shard_key(target.array, shard)}"
