"""The groups and arrays of a split of latents, opened or created for writing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from satstore.config.latent_keys import LatentsKey
from satstore.errors import CorruptError
from satstore.storage.commit_log import Committed
from satstore.storage.zarr.durable_store import DurableStore, open_or_mend
from satstore.storage.zarr.layout import (
    Array,
    Shapes,
    choose_chunk_rows,
    create_array,
    encode_layer,
    get_array,
)
from satstore.storage.zarr.precision import FLOAT16, FLOAT32, Extent, StoragePrecision
from satstore.storage.zarr.running_moments import RunningMoments
from satstore.storage.zarr.shard_codec import is_house_encoding, shard_key

SPATIAL_AXES = ("z", "y", "x")


@dataclass
class LayerArray:
    """One layer's array, open for writing.

    Attributes
    ----------
    path
        The path of the layer's group in the store.
    n_samples
        Samples of the split; None while they are not known.
    missing
        Numbers of the shards that are not committed; while the samples are not known, of those begun.
    moments, extent
        Moments and extent of the stored rows before ``n_seen``; None once mean and std are committed.
    n_kept
        Samples that were there when it was opened, in a split whose length is not known.
    """

    key: LatentsKey
    name: str
    path: str
    group: zarr.Group
    array: Array
    n_samples: int | None
    missing: set[int]
    precision: StoragePrecision
    moments: RunningMoments | None = None
    extent: Extent | None = None
    n_seen: int = 0
    n_kept: int = 0

    @property
    def shard_rows(self) -> int:
        """Samples of a shard."""
        assert self.array.shards is not None
        return self.array.shards[0]

    @property
    def n_rows(self) -> int:
        """The samples before the first shard that is not committed."""
        if self.missing:
            return min(self.missing) * self.shard_rows
        return max(self.n_seen, self.n_kept) if self.n_samples is None else self.n_samples

    def span(self, shard: int) -> slice:
        """Return the samples of a shard."""
        start, stop = shard * self.shard_rows, (shard + 1) * self.shard_rows
        return slice(start, stop if self.n_samples is None else min(stop, self.n_samples))

    def restart_moments(self) -> None:
        """Reset the moments and the extent of the stored rows."""
        shape = self.array.shape[1:]
        self.moments, self.n_seen = RunningMoments(shape), 0
        self.extent = Extent.empty(int(np.prod(shape, dtype=np.int64)))

    def grow(self, n_rows: int) -> None:
        """Lengthen the array to some rows, while the samples of the split are not known."""
        if n_rows > self.array.shape[0]:
            self.array.resize((n_rows, *self.array.shape[1:]))

    def set_length(self, n_samples: int) -> None:
        """Set the number of samples, which was not known, and the array's length."""
        self.n_samples = n_samples
        self.array.resize((n_samples, *self.array.shape[1:]))


@dataclass(frozen=True)
class KeptRows:
    """The committed rows of a split of unknown length, and the precision of each layer at that time.

    A writer that goes on from them drops what was committed later: its rows are not known to be those that
    come again, and may have raised a layer's precision.

    Attributes
    ----------
    n_rows
        The samples that all layers have: whole shards.
    precisions
        Path of each layer's group to its dtype and the bits of its mantissa.
    """

    n_rows: int
    shard_rows: int
    precisions: Mapping[str, tuple[str, int]]


def axes_of(pooling: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of the axes of one sample's latent."""
    n_spatial = len(shape) - 1
    if pooling == "all":
        return ("token", "feature")[-len(shape) :]
    if pooling == "pixelwise":
        return (*SPATIAL_AXES[-n_spatial:], "channel")
    if n_spatial < 2:
        return ("feature", "step")[: len(shape)]
    return ("channel", *SPATIAL_AXES[-n_spatial:])


@dataclass
class SplitOpener:
    """Opens the groups and arrays of one split, and creates those that are not committed.

    Parameters
    ----------
    store, committed
        The store, and its commits; the split has no uncommitted files.
    source
        Attributes of the split, which identify the source of its latents.
    labels, sample_ids
        Label and dataset index of each sample; None if they are not known yet, see :meth:`write_ids`.
    shard_rows
        Samples of a shard, for poolings without shards; the others keep theirs.
    kept
        The rows to go on from, in a split whose labels are not known; None: none are there.
    """

    store: DurableStore
    committed: Committed
    source: Mapping[str, Any]
    labels: NDArray[np.int64] | None
    sample_ids: NDArray[np.int64] | None
    shard_rows: int
    kept: KeptRows | None = None

    def open(self, root: zarr.Group, shapes: Shapes, split: str) -> Iterator[LayerArray]:
        """Yield the array of every key and layer."""
        for key, layers in shapes.items():
            for above in key.groups:
                if above not in root:
                    root.create_group(above)
            group = self._open_split(root, f"{key}/{split}")
            shard_rows = self._stored_rows(group) or self.shard_rows
            for layer, shape in layers.items():
                yield self._open_layer(group, key, layer, shape, shard_rows)

    def _open_split(self, root: zarr.Group, path: str) -> zarr.Group:
        group = root.get(path)
        if isinstance(group, zarr.Group) and {"mantissa_bits": 10} | dict(group.attrs) != self.source:
            self._remove(path)
            group = None
        if not isinstance(group, zarr.Group):
            group = root.create_group(path, attributes=dict(self.source))
        if self.kept is not None:
            for name in ("label", "sample_id"):
                self._remove_committed(f"{path}/{name}")
        if self.labels is not None and self.sample_ids is not None:
            self.write_ids(root, path, self.labels, self.sample_ids)
        return group

    def write_ids(
        self, root: zarr.Group, path: str, labels: NDArray[np.int64], sample_ids: NDArray[np.int64]
    ) -> None:
        """Store the labels and sample ids of a split; raise CorruptError if other ones are stored."""
        group = root[path]
        assert isinstance(group, zarr.Group)
        for name, values in (("label", labels), ("sample_id", sample_ids)):
            is_committed, is_there = f"{path}/{name}/c/0" in self.committed.files, name in group
            if not is_there:
                create_array(group, name, values.shape, np.int64, ("sample",), chunks=(max(1, len(values)),))
            if not is_committed:
                get_array(group, name)[...] = values
            elif is_there and not np.array_equal(np.asarray(get_array(group, name)[...]), values):
                raise CorruptError(
                    f"{group.store_path}: {name} is not that of these {len(values)} samples; "
                    "write it again with: satstore extract --overwrite"
                )

    def _stored_rows(self, group: zarr.Group) -> int | None:
        for key in self.committed.under(group.path):
            if key.endswith("/latent/zarr.json"):
                array = group[key.removeprefix(f"{group.path}/").removesuffix("/zarr.json")]
                assert isinstance(array, zarr.Array)
                return array.shards[0] if array.shards else None
        return None

    def _open_layer(
        self, group: zarr.Group, key: LatentsKey, layer: str, shape: tuple[int, ...], shard_rows: int
    ) -> LayerArray:
        name, n_samples = encode_layer(layer), None if self.labels is None else len(self.labels)
        path = f"{group.path}/{name}"
        n_kept = 0 if self.kept is None else self.kept.n_rows
        length = max(shard_rows, n_kept) if n_samples is None else n_samples
        if self.kept is not None:
            self._drop_later(group, name, (length, *shape), self.kept)
        self._check_layer(group, name, (length, *shape), (shard_rows, *shape))
        files = self.committed.files
        layer_group = group.get(name)
        if not isinstance(layer_group, zarr.Group):
            layer_group = group.create_group(name, attributes={"layer": layer})
        precision = self._mend_precision(layer_group)
        axes = axes_of(key.pooling, shape)
        array = self._require_arrays(layer_group, (length, *shape), shard_rows, axes, precision)
        missing = [
            shard
            for shard in range(-(-(n_samples or n_kept) // shard_rows))
            if f"{path}/latent/{shard_key(array, shard)}" not in files
        ]
        found = LayerArray(
            key,
            layer,
            path,
            layer_group,
            array,
            n_samples,
            missing=set(missing),
            precision=precision,
            n_kept=n_kept,
        )
        if not all(f"{path}/{moment}/c{'/0' * len(shape)}" in files for moment in ("mean", "std")):
            found.restart_moments()
        return found

    def _drop_later(self, group: zarr.Group, name: str, shape: tuple[int, ...], kept: KeptRows) -> None:
        """Drop what a layer has beyond the rows kept, and all of it if its dtype was another then."""
        path, layer_group = f"{group.path}/{name}", group.get(name)
        if not isinstance(layer_group, zarr.Group):
            return
        precision = self._mend_precision(layer_group)
        dtype, mantissa_bits = kept.precisions.get(path, ("", 0))
        if precision.dtype.name != dtype:
            self._remove(path)
            return
        for moment in ("mean", "std"):
            self._remove_committed(f"{path}/{moment}")
        for key in self.committed.under(f"{path}/latent/c"):
            shard = int(key.removeprefix(f"{path}/latent/c/").partition("/")[0])
            if shard * kept.shard_rows >= kept.n_rows:
                self.store.remove_object(key)
                self.committed.drop(key)
        before = replace(precision, mantissa_bits=mantissa_bits)
        if "latent" in layer_group:
            array = get_array(layer_group, "latent")
            describe_precision(array, before)
            if array.shape != shape:
                array.resize(shape)
        describe_precision(layer_group, before)

    def _require_arrays(
        self,
        group: zarr.Group,
        shape: tuple[int, ...],
        shard_rows: int,
        axes: tuple[str, ...],
        precision: StoragePrecision,
    ) -> Array:
        """Create those of a layer's arrays that are missing; return the one of its latents."""
        if "latent" not in group:
            create_latent(
                group,
                shape,
                shard_rows=shard_rows,
                dimensions=("sample", *axes),
                precision=precision,
                mantissa_bits=self.source["mantissa_bits"],
            )
        for moment in ("mean", "std"):
            if moment not in group:
                create_array(group, moment, shape[1:], np.float32, axes, chunks=shape[1:])
        return get_array(group, "latent")

    def _check_layer(
        self, group: zarr.Group, key: str, shape: tuple[int, ...], shards: tuple[int, ...]
    ) -> None:
        """Remove a layer that is stored in another form, or whose metadata are lost."""
        path = f"{group.path}/{key}"
        array = group.get(f"{key}/latent")
        if isinstance(array, zarr.Array):
            is_known = array.dtype in (FLOAT16, FLOAT32) and is_house_encoding(array)
            fits = is_known and (array.shape, array.shards) == (shape, shards)
        else:
            fits = key in group or not self.committed.under(f"{path}/latent")
        if not fits:
            self._remove(path)

    def _mend_precision(self, layer_group: zarr.Group) -> StoragePrecision:
        """Read a layer's precision from its array or its group, and write it to both: either may be lost."""
        bits = self.source["mantissa_bits"]
        if "latent" in layer_group:
            array = get_array(layer_group, "latent")
            precision = StoragePrecision.read(array.dtype, dict(array.attrs), bits)
        elif "mantissa_bits" in layer_group.attrs:
            precision = StoragePrecision.read(FLOAT32, dict(layer_group.attrs), bits)
        else:
            precision = StoragePrecision(FLOAT16, bits)
        describe_precision(layer_group, precision)
        return precision

    def _remove_committed(self, path: str) -> None:
        if self.committed.under(path):
            self._remove(path)

    def _remove(self, path: str) -> None:
        self.store.remove_group(path)
        self.committed.drop(path)


def create_latent(
    group: zarr.Group,
    shape: tuple[int, ...],
    *,
    shard_rows: int,
    dimensions: tuple[str, ...],
    precision: StoragePrecision,
    mantissa_bits: int,
) -> Array:
    """Create the array of a layer's latents, (samples, …), in its group.

    The mantissa bits are those of the split, which determine the compressor.
    """
    chunk_rows = choose_chunk_rows(shape[1:], shard_rows, precision.dtype.itemsize)
    return create_array(
        group,
        "latent",
        shape,
        precision.dtype,
        dimensions,
        mantissa_bits=mantissa_bits,
        chunks=(chunk_rows, *shape[1:]),
        shards=(shard_rows, *shape[1:]),
        attributes=precision.attributes,
    )


def describe_precision(node: "zarr.Group | Array", precision: StoragePrecision) -> None:
    """Update the attributes of a layer's group or array with its precision."""
    described = {**node.attrs, **precision.attributes}
    if described != dict(node.attrs):
        node.attrs.put(described)


def open_root_group(store: DurableStore, attributes: Mapping[str, Any]) -> zarr.Group:
    """Open a store's root for writing, and update its attributes."""
    group = open_or_mend(store)
    if dict(group.attrs) != dict(attributes):
        group.attrs.put(dict(attributes))
    return group
