"""Write a layer's shards, with the precision that its rows so far need."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satstore.storage.zarr.durable_store import DurableStore
from satstore.storage.zarr.layer_arrays import LayerArray, create_latent, describe_precision
from satstore.storage.zarr.layout import get_array
from satstore.storage.zarr.precision import FLOAT16, Extent, Float32s, StoragePrecision, choose_precision
from satstore.storage.zarr.shard_codec import encode_shard, shard_key

OnRows = Callable[[LayerArray, int, NDArray[Any], NDArray[Any]], None]


class ShardWriter:
    """Writes shards of layers into a store; those of one layer one after the other, in ascending order.

    A layer is float16 as long as that keeps the spread of all its features, over the rows so far. The first
    shard that needs more makes it float32 for good: earlier shards are encoded again from their stored
    values, which have lost nothing. The decision depends on the stored and the new rows alone, so that a
    resumed run decides in the same way.

    Parameters
    ----------
    store
        The store of the layers; the caller commits.
    mantissa_bits
        The bits of float16's mantissa that are kept.
    on_rows
        Called with layer, first row, and rows as they came and as stored, for rows that were stored before.
    """

    def __init__(self, store: DurableStore, mantissa_bits: int, on_rows: OnRows) -> None:
        self._store, self._mantissa_bits, self._on_rows = store, mantissa_bits, on_rows

    def write(self, layer: LayerArray, shard: int, values: Float32s) -> None:
        """Write a shard's rows, rounded in place; after the last shard, write the layer's mean and std."""
        start = layer.span(shard).start
        found = None
        if layer.extent is not None:
            self._add_committed(layer, start)
            found = layer.extent.joined(Extent.of(values))
            self._raise_precision(layer, shard, choose_precision(found, self._mantissa_bits))
        rows = layer.precision.round(values)
        self._store.write_object(self._key(layer, shard), *encode_shard(layer.array, rows))
        if layer.moments is not None and found is not None:
            layer.moments.update(rows)
            layer.extent = found.rounded(layer.precision)
            layer.n_seen = start + len(rows)
        layer.missing.discard(shard)
        if not layer.missing and layer.n_samples is not None:
            self.finish(layer)

    def finish(self, layer: LayerArray) -> None:
        """Write a layer's mean and standard deviation, unless they are committed."""
        if layer.moments is None:
            return
        assert layer.n_samples is not None
        self._add_committed(layer, layer.n_samples)
        with np.errstate(invalid="ignore", over="ignore"):
            get_array(layer.group, "mean")[...] = layer.moments.mean.astype(np.float32)
            get_array(layer.group, "std")[...] = layer.moments.std.astype(np.float32)
        layer.moments = layer.extent = None

    def _add_committed(self, layer: LayerArray, stop: int) -> None:
        """Add the committed rows before some row to moments and extent."""
        assert layer.moments is not None
        assert layer.extent is not None
        for start in range(layer.n_seen, stop, layer.shard_rows):
            block = np.asarray(layer.array[start : min(start + layer.shard_rows, stop)])
            layer.moments.update(block)
            layer.extent = layer.extent.joined(Extent.of(block.astype(np.float32, copy=False)))
            self._on_rows(layer, start, block, block)
            layer.n_seen = start + len(block)

    def _raise_precision(self, layer: LayerArray, shard: int, needed: StoragePrecision) -> None:
        """Raise a layer's precision from this shard on, if its rows need it."""
        precision = layer.precision.at_least(needed)
        if precision == layer.precision:
            return
        if layer.precision.dtype == FLOAT16:
            self._reencode(layer, shard, precision)
            self._add_committed(layer, layer.span(shard).start)
        else:
            describe_precision(layer.array, precision)
        describe_precision(layer.group, precision)
        layer.precision = precision

    def _reencode(self, layer: LayerArray, shard: int, precision: StoragePrecision) -> None:
        """Replace a layer's array by one in float32, with all rows of the old one except those of a shard.

        It is first taken out of the log: after a crash in between, the layer is written from its first row.
        """
        path, old = layer.array.path, layer.array
        n_shards = shard if layer.n_samples is None else -(-layer.n_samples // layer.shard_rows)
        stored = [other for other in range(n_shards) if other != shard and other not in layer.missing]
        self._store.forget(path)
        if stored:
            layer.grow(layer.span(stored[-1]).stop)
        self._store.remove_object(f"{path}/zarr.json")
        layer.array = create_latent(
            layer.group,
            old.shape,
            shard_rows=layer.shard_rows,
            dimensions=tuple(map(str, old.metadata.dimension_names or ())),  # type: ignore[union-attr]
            precision=precision,
            mantissa_bits=self._mantissa_bits,
        )
        for other in stored:
            rows = np.asarray(old[layer.span(other)])
            self._store.write_object(self._key(layer, other), *encode_shard(layer.array, rows))
        layer.restart_moments()

    def _key(self, layer: LayerArray, shard: int) -> str:
        return f"{layer.array.path}/{shard_key(layer.array, shard)}"
