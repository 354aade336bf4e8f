"""Readers of stores of latents: a store, one split of a pooling, one layer's array."""

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from satstore.analysis.floats import Floats
from satstore.analysis.row_source import BlockRows
from satstore.config.latent_keys import EPOCHS, LatentsKey
from satstore.errors import NotFoundError, UnknownNameError
from satstore.registry import suggest
from satstore.storage.location import Bucket, Location, join, locate
from satstore.storage.zarr.durable_store import DurableStore
from satstore.storage.zarr.layout import (
    Array,
    check_axes,
    encode_layer,
    explaining_decode_errors,
    explaining_metadata_errors,
    get_array,
    open_root,
)
from satstore.storage.zarr.shard_codec import ShardReader, open_shards

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike

    from satstore.storage.zarr.latent_batches import LatentBatches

NO_SAMPLE_ID = -1
"""Stored in place of a sample id where it is not known."""

NO_LABEL = -1
"""The label of a sample whose class is not known."""


class LatentArray:
    """One layer's latents of one split: an array (sample, feature) or (sample, channel, y, x), on disk.

    Attributes
    ----------
    layer
        The layer's PyTorch name.
    array
        The zarr array: float16, or float32 where float16 would not keep a feature's spread.
    """

    def __init__(self, group: zarr.Group, read_labels: Callable[[], NDArray[np.int64]]) -> None:
        with explaining_metadata_errors(group.store_path):
            self.layer = str(group.attrs["layer"])
        self._group, self._read_labels = group, read_labels
        array = get_array(group, "latent")
        self.array: Array = check_axes(array, *[None] * max(2, array.ndim), kinds="f")

    def __reduce__(self) -> tuple[Any, ...]:
        split, _, _ = self._group.path.rpartition("/")
        return _open_layer, (join(str(self._location)), split, self.layer)

    def __repr__(self) -> str:
        return f"<LatentArray {self.layer} {self.shape} {self.array.dtype}>"

    @property
    def shape(self) -> tuple[int, ...]:
        """(sample, feature) or (sample, channel, y, x)."""
        return tuple(self.array.shape)

    @property
    def n_features(self) -> int:
        """Number of features of one sample, with its axes flattened."""
        return int(np.prod(self.shape[1:], dtype=np.int64))

    @property
    def is_remote(self) -> bool:
        """Tell whether it lies on object storage."""
        return isinstance(self._location, Bucket)

    @property
    def _location(self) -> Location:
        store = self.array.store
        assert isinstance(store, DurableStore)
        return store.location

    @property
    def mean(self) -> NDArray[np.float32]:
        """Mean over the samples, of one sample's shape."""
        return self._read_moment("mean")

    @property
    def std(self) -> NDArray[np.float32]:
        """Standard deviation over the samples (divided by n), of one sample's shape."""
        return self._read_moment("std")

    def _read_moment(self, name: str) -> NDArray[np.float32]:
        array = check_axes(get_array(self._group, name), *self.shape[1:])
        what = f"{self._group.store_path}: {name}"
        with (
            explaining_decode_errors(what, "write it again with: satstore extract"),
            np.errstate(over="ignore"),
        ):
            return np.asarray(array[...], dtype=np.float32)

    def numpy(self) -> NDArray[np.floating[Any]]:
        """Read all of it into memory; raise CorruptError if a stored chunk isn't what was written."""
        return self._read(0, self.shape[0])

    def rows(self) -> BlockRows:
        """Return the samples as rows of features for a LogisticProbe, which reads them block by block.

        Reading raises CorruptError where a stored chunk isn't what was written.
        """
        edges = [*range(0, self.shape[0], self.array.chunks[0]), self.shape[0]]
        load_floats = self._read_floats if self._shards else None
        rows = BlockRows(self._read, self.shape, self.array.dtype, edges, load_floats=load_floats)
        mean, std = self.mean, self.std
        if np.isfinite(mean).all() and np.isfinite(std).all():  # else a pass finds the rows that aren't
            rows.mean, rows.std = mean, std
        return rows

    def dataset(
        self,
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        labels: "ArrayLike | None" = None,
        buffer_bytes: int = 128 * 2**20,
        dtype: "torch.dtype | None" = None,
    ) -> "LatentBatches":
        """Return a torch dataset of minibatches (latents, labels), to train on out of core.

        Give it to a ``DataLoader(dataset, batch_size=None)``, or loop over it. In a pass, each sample comes
        once. Its ``set_epoch(n)``, called before a pass, chooses another order.

        Shuffled, whole chunks (about 2 MiB) are read in random order, and their samples mixed in a buffer: a
        batch draws on as many chunks as the buffer holds, 64 by default, also where samples are stored class
        by class. Seed, epoch, batch size, buffer and number of workers determine every batch. Workers share
        out the chunks; the last batch of each may be short. Not shuffled, samples come in stored order with
        any number of workers, which all decode everything then.

        Parameters
        ----------
        labels
            One for each sample, in stored order; by default the class indices that are stored, -1 where there
            is none.
        buffer_bytes
            Size of a buffer. Each process that reads has two, of at least one batch, and keeps them for the
            next pass.
        dtype
            A floating-point dtype of torch that latents are converted to; by default they are as stored, most
            of them float16.

        Raises
        ------
        ConfigError
            If an argument is none of these. In a pass: if the latents are on object storage, and this process
            was forked off one that uses it.
        CorruptError
            In a pass: if a stored chunk isn't what was written.
        """
        from satstore.storage.zarr.latent_batches import LatentBatches

        return LatentBatches(
            self,
            self._read_labels() if labels is None else labels,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            buffer_bytes=buffer_bytes,
            dtype=dtype,
        )

    @cached_property
    def _shards(self) -> ShardReader | None:
        store = self.array.store
        return (
            open_shards(store.root / self.array.path, self.array) if isinstance(store, LocalStore) else None
        )

    def _read(self, start: int, stop: int) -> NDArray[np.floating[Any]]:
        with self._reading(start, stop):
            return np.asarray(self._shards.read(start, stop) if self._shards else self.array[start:stop])

    def read_into(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Read samples start to stop into a C-contiguous array of their shape and dtype.

        Many threads may call it at once. Raises CorruptError if a stored chunk isn't what was written.
        """
        with self._reading(start, stop):
            if self._shards:
                self._shards.read(start, stop, out)
            else:
                out[...] = self.array[start:stop]

    def _read_floats(self, start: int, stop: int, out: Floats) -> Floats:
        assert self._shards is not None
        with self._reading(start, stop):
            self._shards.read_floats(start, stop, out)
        return out

    def _reading(self, start: int, stop: int) -> AbstractContextManager[None]:
        """Turn read errors into a CorruptError that names the samples, their layer and the remedy."""
        what = f"{self._group.store_path}: samples {start} to {stop - 1} of layer {self.layer}"
        return explaining_decode_errors(what, "write them again with: satstore extract")

    def dask(self, chunk_bytes: int = 64 * 2**20) -> Any:
        """Return a dask array of it, in blocks of whole stored chunks of about ``chunk_bytes``."""
        import dask.array as da

        stored = self.array.chunks[0]
        row_bytes = max(1, self.n_features * self.array.dtype.itemsize)
        rows = max(1, chunk_bytes // row_bytes // stored) * stored
        # from_zarr alone would take the inner chunks of the shards: thousands of tasks of 2 MiB.
        return da.from_zarr(  # type: ignore[no-untyped-call]
            self.array, chunks=(rows, *self.shape[1:])
        )


class LatentSplit(Mapping[str, LatentArray]):
    """The latents of one pooling and split: layer name to :class:`LatentArray`, in forward order."""

    def __init__(self, group: zarr.Group, layers: list[str]) -> None:
        self._group = group
        with explaining_metadata_errors(group.store_path):
            self._keys = {layer: encode_layer(layer) for layer in layers if encode_layer(layer) in group}

    def only(self, layers: Container[str]) -> "LatentSplit":
        """Return the latents of some of its layers."""
        return LatentSplit(self._group, [layer for layer in self if layer in layers])

    def __getitem__(self, layer: str) -> LatentArray:
        if layer not in self._keys:
            raise UnknownNameError(f"no latents of a layer {layer!r}{suggest(layer, self._keys)}")
        with explaining_metadata_errors(self._group.store_path):
            item = self._group[self._keys[layer]]
            assert isinstance(item, zarr.Group)
        return LatentArray(item, lambda: self.labels)

    def __contains__(self, layer: object) -> bool:
        return layer in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The class index of each sample."""
        return self._read("label")

    @cached_property
    def sample_ids(self) -> NDArray[np.int64]:
        """The index of each sample in its dataset; raises NotFoundError if the latents have none."""
        found = self._read("sample_id")
        if (found == NO_SAMPLE_ID).any():
            raise NotFoundError(
                f"{self._group.store_path}: these latents carry no sample ids, so that it is not known which "
                "image is which; for latents that do: satstore extract --overwrite"
            )
        return found

    def _read(self, name: str) -> NDArray[np.int64]:
        array = check_axes(get_array(self._group, name), None, kinds="iu")
        with explaining_decode_errors(
            f"{self._group.store_path}: {name}", "write it again with: satstore extract"
        ):
            return np.asarray(array[...], dtype=np.int64)


def _open_layer(place: str, split: str, layer: str) -> LatentArray:
    """Open one layer's latents by the place of their store and the path of their split in it."""
    with explaining_metadata_errors(f"{place}/{split}"):
        group = open_root(locate(place))[split]
    assert isinstance(group, zarr.Group)
    return LatentSplit(group, [layer])[layer]


class LatentStore:
    """A store of latents, open for reading; its attributes are run, config, layers and class names."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._root = open_root(location)
        self.attributes = dict(self._root.attrs)

    def __repr__(self) -> str:
        return f"<LatentStore {self.location}: {', '.join(self.poolings) or 'empty'}>"

    @property
    def layers(self) -> list[str]:
        """Layer names, in forward order."""
        with explaining_metadata_errors(self.location):
            return [str(layer) for layer in self.attributes["layers"]]  # type: ignore[union-attr]

    @property
    def poolings(self) -> list[str]:
        """Names of the stored poolings, such as ``pool4``, of the last epoch."""
        return sorted(name for name in _groups(self._root) if name != EPOCHS)

    @property
    def epochs(self) -> list[int]:
        """The earlier epochs, counted from 0, that latents are stored of."""
        return sorted(int(name) for name in _groups(self._root.get(EPOCHS)) if name.isdecimal())

    def split(self, pooling: str, split: str, epoch: int | None = None) -> LatentSplit:
        """Return the split ``train`` or ``eval`` of a pooling such as ``pool4``, by default the last epoch's.

        Raises UnknownNameError if the store has no such epoch (see :attr:`epochs`), pooling or split.
        """
        key = LatentsKey.parse(pooling)
        path = f"{key if epoch is None else key.at(epoch)}/{split}"
        with explaining_metadata_errors(f"{self.location}/{path}"):
            group = self._root.get(path)
        if not isinstance(group, zarr.Group):
            keys = [*self.poolings]
            for n in self.epochs:
                keys += [f"{EPOCHS}/{n}/{group}" for group in _groups(self._root.get(f"{EPOCHS}/{n}"))]
            known = [f"{key}/{s}" for key in keys for s in _groups(self._root.get(key))]
            raise UnknownNameError(f"{self.location} has no latents {path!r}{suggest(path, known)}")
        return LatentSplit(group, self.layers)


def _groups(group: Any) -> list[str]:
    """Return the names of the groups in a group; none if it is an array or missing."""
    if not isinstance(group, zarr.Group):
        return []
    with explaining_metadata_errors(group.store_path):
        return [name for name, _ in group.groups()]


def digest_labels(labels: NDArray[np.int64], sample_ids: NDArray[np.int64]) -> str:
    """Return the SHA-256 of a split's labels and sample ids, which stored ones are compared by."""
    return hashlib.sha256(labels.astype("<i8").tobytes() + sample_ids.astype("<i8").tobytes()).hexdigest()


def open_latents(place: Path | str) -> LatentStore:
    """Open a store of latents by its path or URL; the rest of the run is not needed.

    Raises ConfigError if the place is neither a path nor a URL that :func:`satstore.storage.location.locate`
    takes, UnreachableError if object storage does not answer, NotFoundError if there is no store, and
    CorruptError if it has an unknown format version.
    """
    return LatentStore(locate(place))
