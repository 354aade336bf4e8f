"""What is still to be written of a store of latents: found, and made ready to be written into."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from satstore.commits import Committed
from satstore.errors import CorruptError
from satstore.latent_key import groups_of, split_latents_key
from satstore.store.durable import DurableStore
from satstore.store.layout import (
    Array,
    Shapes,
    choose_chunk_rows,
    create_array,
    encode_layer,
    get_array,
)
from satstore.store.moments import FeatureMoments
from satstore.store.shards import is_house_encoding, shard_key

SPATIAL_AXES = ("z", "y", "x")


@dataclass
class Target:
    """One layer's array, open for writing.

    Attributes
    ----------
    path
        The layer's group in the store.
    n_samples
        Of the split; None while that is not known.
    missing
        The shards that are not committed, by number; of those begun, while the samples are not counted.
    moments
        Those of the rows before ``n_seen``; None where mean and std are committed.
    """

    pooling: str
    layer: str
    path: str
    group: zarr.Group
    array: Array
    n_samples: int | None
    missing: set[int]
    moments: FeatureMoments | None
    n_seen: int = 0

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
        return self.n_seen if self.n_samples is None else self.n_samples

    def span(self, shard: int) -> slice:
        """Return the samples of a shard."""
        start, stop = shard * self.shard_rows, (shard + 1) * self.shard_rows
        return slice(start, stop if self.n_samples is None else min(stop, self.n_samples))

    def count(self, n_samples: int) -> None:
        """Note how many samples came, of which that was not known; the array gets its length."""
        self.n_samples = n_samples
        self.array.resize((n_samples, *self.array.shape[1:]))


def axes_of(pooling: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of the axes of one sample's latent."""
    n_spatial = len(shape) - 1
    if pooling == "pixelwise":
        return (*SPATIAL_AXES[-n_spatial:], "channel")
    if n_spatial < 2:
        return ("feature", "step")[: len(shape)]
    return ("channel", *SPATIAL_AXES[-n_spatial:])


@dataclass
class SplitOpener:
    """Opens the groups and arrays of one split, and makes those that are not committed.

    Parameters
    ----------
    store, committed
        The store, and what the log says of it; files of the split that it does not know are gone.
    source
        Attributes of the split: what its latents are made from.
    labels, sample_ids
        Of every sample of the split; None where they are not known yet, see :meth:`write_ids`.
    shard_rows
        For poolings that have no shards yet; the others keep theirs.
    """

    store: DurableStore
    committed: Committed
    source: Mapping[str, Any]
    labels: NDArray[np.int64] | None
    sample_ids: NDArray[np.int64] | None
    shard_rows: int

    def open(self, root: zarr.Group, shapes: Shapes, split: str) -> Iterator[Target]:
        """Yield a target for every pooling and layer."""
        for pooling, layers in shapes.items():
            for above in groups_of(pooling):
                if above not in root:
                    root.create_group(above)
            group = self._open_split(root, f"{pooling}/{split}")
            shard_rows = self._stored_rows(group) or self.shard_rows
            for layer, shape in layers.items():
                yield self._open_layer(group, pooling, layer, shape, shard_rows)

    def _open_split(self, root: zarr.Group, path: str) -> zarr.Group:
        group = root.get(path)
        if isinstance(group, zarr.Group) and {"mantissa_bits": 10} | dict(group.attrs) != self.source:
            self._remove(path)
            group = None
        if not isinstance(group, zarr.Group):
            group = root.create_group(path, attributes=dict(self.source))
        if self.labels is not None and self.sample_ids is not None:
            self.write_ids(root, path, self.labels, self.sample_ids)
        return group

    def write_ids(
        self, root: zarr.Group, path: str, labels: NDArray[np.int64], sample_ids: NDArray[np.int64]
    ) -> None:
        """Store the labels and sample ids of a split, or check that those that are stored are these."""
        group = root[path]
        assert isinstance(group, zarr.Group)
        for name, values in (("label", labels), ("sample_id", sample_ids)):
            self._open_ids(group, path, name, values)

    def _open_ids(self, group: zarr.Group, path: str, name: str, values: NDArray[np.int64]) -> None:
        if name in group and f"{path}/{name}/c/0" in self.committed.files:
            stored = np.asarray(get_array(group, name)[...])
            if not np.array_equal(stored, values):
                raise CorruptError(
                    f"{group.store_path}: {name} is not that of these {len(values)} samples; "
                    "write it again with: satstore extract --overwrite"
                )
            return
        if name not in group:
            create_array(group, name, values.shape, np.int64, ("sample",), chunks=(max(1, len(values)),))
        if f"{path}/{name}/c/0" not in self.committed.files:
            get_array(group, name)[...] = values

    def _stored_rows(self, group: zarr.Group) -> int | None:
        for key in self.committed.under(group.path):
            if key.endswith("/latent/zarr.json"):
                array = group[key.removeprefix(f"{group.path}/").removesuffix("/zarr.json")]
                assert isinstance(array, zarr.Array)
                return array.shards[0] if array.shards else None
        return None

    def _open_layer(
        self, group: zarr.Group, pooling: str, layer: str, shape: tuple[int, ...], shard_rows: int
    ) -> Target:
        key, n_samples = encode_layer(layer), None if self.labels is None else len(self.labels)
        length = shard_rows if n_samples is None else n_samples
        path = f"{group.path}/{key}"
        layer_group = group.get(key)
        if isinstance(layer_group, zarr.Group) and "latent" in layer_group:
            stored = get_array(layer_group, "latent")
            expected = (length, *shape), (shard_rows, *shape)
            if (stored.shape, stored.shards) != expected or not is_house_encoding(stored):
                self._remove(path)
                layer_group = None
        if not isinstance(layer_group, zarr.Group):
            layer_group = group.create_group(key, attributes={"layer": layer})
        axes = axes_of(split_latents_key(pooling)[0], shape)
        if "latent" not in layer_group:
            create_array(
                layer_group,
                "latent",
                (length, *shape),
                np.float16,
                ("sample", *axes),
                self.source["mantissa_bits"],
                chunks=(choose_chunk_rows(shape, shard_rows), *shape),
                shards=(shard_rows, *shape),
            )
        for name in ("mean", "std"):
            if name not in layer_group:
                create_array(layer_group, name, shape, np.float32, axes, chunks=shape)
        files = self.committed.files
        is_whole = all(f"{path}/{name}/c{'/0' * len(shape)}" in files for name in ("mean", "std"))
        array = get_array(layer_group, "latent")
        return Target(
            pooling=pooling,
            layer=layer,
            path=path,
            group=layer_group,
            array=array,
            n_samples=n_samples,
            missing={
                shard
                for shard in range(-(-(n_samples or 0) // shard_rows))
                if f"{path}/latent/{shard_key(array, shard)}" not in files
            },
            moments=None if is_whole else FeatureMoments(shape),
        )

    def _remove(self, path: str) -> None:
        self.store.remove_group(path)
        prefix = f"{path}/"
        self.committed.files = {k: d for k, d in self.committed.files.items() if not k.startswith(prefix)}


def open_root_group(store: DurableStore, attributes: Mapping[str, Any]) -> zarr.Group:
    """Open a store for writing, what it says of itself brought up to date."""
    try:
        group = zarr.open_group(store, mode="a")
    except (ValueError, KeyError, TypeError):  # no metadata of a group: written anew
        store.remove_object("zarr.json")
        group = zarr.open_group(store, mode="a")
    if dict(group.attrs) != dict(attributes):
        group.attrs.put(dict(attributes))
    return group
