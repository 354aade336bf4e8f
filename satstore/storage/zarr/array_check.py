"""Decode arrays object by object from given bytes: the same bytes that a digest was computed of."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import Buffer, cpu
from zarr.storage import MemoryStore

from satstore.errors import CorruptError, reason_of
from satstore.storage.zarr.layout import Array, check_claims, objects_of
from satstore.storage.zarr.value_problems import has_non_finite


class StoredArray:
    """An array whose objects (its shards, or its chunks if it has no shards) are given one by one.

    It is made from its ``zarr.json``. Raises CorruptError if that is no array's, or claims more than any
    store holds.

    Attributes
    ----------
    objects
        The key of each object, relative to the array's, to the part of the array that it holds.
    """

    def __init__(self, metadata: bytes) -> None:
        self._held: dict[str, Buffer] = {"zarr.json": cpu.Buffer.from_bytes(metadata)}
        try:
            array = zarr.open_array(MemoryStore(self._held), mode="r", zarr_format=3)
        except Exception as error:  # zarr has no common error for metadata that it does not understand
            raise CorruptError(f"is not the metadata of an array: {reason_of(error)}") from error
        check_claims(array, is_read_whole=False)
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: np.dtype[Any] = array.dtype
        self._array: Array = array
        self._chunk_rows = array.chunks[0] if array.chunks else 1
        step = objects_of(array)
        grid = [range(ceil(size / n)) for size, n in zip(self.shape, step, strict=True)]
        self.objects = {
            array.metadata.encode_chunk_key(at): tuple(
                slice(i * n, min((i + 1) * n, size)) for i, n, size in zip(at, step, self.shape, strict=True)
            )
            for at in product(*grid)
        }

    def check(self, n_axes: int | None, kinds: str) -> None:
        """Check the number of axes (None: any), the kinds of numbers, and that objects hold whole rows."""
        whole = tuple(slice(0, size) for size in self.shape[1:])
        is_whole = all(part[1:] == whole for part in self.objects.values())
        if n_axes not in (None, len(self.shape)) or self.dtype.kind not in kinds or not is_whole:
            raise CorruptError(
                f"is of an array of shape {self.shape} of {self.dtype}, in {len(self.objects)} files: not as "
                "satstore writes it"
            )

    def blank(self) -> NDArray[Any]:
        """Return an array of the same shape, filled with the fill value.

        Raises CorruptError if it claims to be larger than any array that is read at once.
        """
        check_claims(self._array, is_read_whole=True)
        return np.full(self.shape, self._array.fill_value, dtype=self.dtype)

    def rows(self, key: str) -> range:
        """Return the rows, along the first axis, that an object holds."""
        part = self.objects[key]
        return range(part[0].start, part[0].stop) if part else range(1)

    def chunks(self, key: str, content: bytes) -> Iterator[NDArray[Any]]:
        """Decode an object's chunks, one after the other along the first axis.

        Raises CorruptError if a chunk's checksum is wrong, or it can't be decoded.
        """
        part, rows = self.objects[key], self.rows(key)
        self._held[key] = cpu.Buffer.from_bytes(content)
        try:
            for start in range(rows.start, rows.stop, self._chunk_rows):
                block = (slice(start, min(start + self._chunk_rows, rows.stop)), *part[1:]) if part else ()
                yield np.asarray(self._array[block])
        except (ValueError, RuntimeError, OSError) as error:  # a checksum, Blosc
            raise CorruptError(f"can't be decoded from row {start} on: {reason_of(error)}") from error
        finally:
            del self._held[key]


@dataclass
class Finiteness:
    """Counts the non-finite values of the samples so far, and notes the features that are finite.

    Attributes
    ----------
    features
        Whether each feature is finite in all samples, of one sample's shape; True stands for all features.
    n_non_finite
        The number of values that are NaN or infinite.
    n_empty
        The number of chunks of nothing but NaN, as a lost chunk reads.
    """

    features: NDArray[np.bool_] | np.bool_ = np.True_
    n_non_finite: int = 0
    n_empty: int = 0

    def add(self, chunk: NDArray[Any]) -> None:
        """Add a chunk of samples (n, …)."""
        if not has_non_finite(chunk):  # fast, and nearly always true
            return
        finite = np.isfinite(chunk)
        self.features = self.features & finite.all(axis=0)
        self.n_non_finite += int(finite.size - finite.sum())
        self.n_empty += int(np.isnan(chunk).all())

    def merge(self, other: "Finiteness") -> None:
        """Add the samples of another."""
        self.features = self.features & other.features
        self.n_non_finite += other.n_non_finite
        self.n_empty += other.n_empty
