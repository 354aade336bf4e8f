"""Reading sharded arrays of the house's encoding from a folder, twice as fast as through Zarr.

A pass of a probe reads every chunk of a layer. Zarr hands each through half a dozen tasks and copies; here a
chunk is read, checked, decoded and widened while it is in the cache. What isn't in the house's encoding, or
not in a folder, is left to Zarr.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from satstore.analysis.rows import Floats, widen
from satstore.store.layout import Array

CRC_BYTES = 4
MISSING = 2**64 - 1
"""The offset and size, in a shard's index, of a chunk that was not written."""


class ShardReader:
    """Reads ranges of rows of a 1-D grid of shards: whole samples in every chunk.

    Attributes
    ----------
    folder
        The array's folder.
    """

    def __init__(self, folder: Path, array: Array) -> None:
        assert array.shards is not None
        self.folder = folder
        self._shape, self._dtype = array.shape, array.dtype
        self._chunk_rows, self._shard_rows = array.chunks[0], array.shards[0]
        self._per_shard = self._shard_rows // self._chunk_rows
        self._ones = "/0" * (len(array.shape) - 1)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows start to stop; what was not written is NaN.

        Raises
        ------
        ValueError
            If a chunk or an index is not what its checksum says.
        OSError
            If a shard can't be read.
        """
        rows = np.empty((stop - start, *self._shape[1:]), self._dtype)
        for low, chunk in self._chunks(start, stop):
            rows[low - start : low - start + len(chunk)] = chunk.reshape(-1, *self._shape[1:])
        return rows

    def read_floats(self, start: int, stop: int, out: Floats) -> None:
        """Write rows start to stop, flattened, to a float32 array; raises what :meth:`read` does."""
        for low, chunk in self._chunks(start, stop):
            widen(chunk, out[low - start : low - start + len(chunk)])

    def _chunks(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, rows) of one chunk after another, in one array: it has to be used at once."""
        chunk_rows, n_features = self._chunk_rows, int(np.prod(self._shape[1:]))
        buffer, decoded = np.empty(0, np.uint8), np.empty((chunk_rows, n_features), self._dtype)
        for shard in range(start // self._shard_rows, -(-stop // self._shard_rows)):
            first = shard * self._shard_rows
            within = range(max(start, first) - first, min(stop, first + self._shard_rows) - first)
            with self._open(shard) as file:
                index = self._read_index(file)
                for chunk in range(within.start // chunk_rows, -(-within.stop // chunk_rows)):
                    offset, size = map(int, index[chunk])
                    if len(buffer) < size < MISSING:
                        buffer = np.empty(size, np.uint8)
                    if offset == MISSING:
                        decoded[...] = np.nan
                    else:
                        blosc.decompress(_read_checked(file, offset, buffer[:size]), decoded)
                    low, high = (
                        max(within.start, chunk * chunk_rows),
                        min(within.stop, (chunk + 1) * chunk_rows),
                    )
                    yield first + low, decoded[low - chunk * chunk_rows : high - chunk * chunk_rows]

    @contextmanager
    def _open(self, shard: int) -> Iterator[int | None]:
        """Open a shard's file; None if it was not written."""
        try:
            file = os.open(self.folder / f"c/{shard}{self._ones}", os.O_RDONLY)
        except FileNotFoundError:
            yield None
            return
        try:
            yield file
        finally:
            os.close(file)

    def _read_index(self, file: int | None) -> NDArray[np.uint64]:
        """Return offset and size of each chunk of a shard."""
        if file is None:
            return np.full((self._per_shard, 2), MISSING, np.uint64)
        content = np.empty(16 * self._per_shard + CRC_BYTES, np.uint8)
        end = max(len(content), os.fstat(file).st_size)
        return _read_checked(file, end - len(content), content).view("<u8").reshape(self._per_shard, 2)


def _read_checked(file: int | None, offset: int, buffer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fill a buffer with bytes of which the last four are the others' checksum, and return the others."""
    assert file is not None
    found = buffer[: os.preadv(file, [buffer.data], offset)]
    body, stored = found[:-CRC_BYTES], found[-CRC_BYTES:].tobytes()
    checksum = int(google_crc32c.value(body)).to_bytes(CRC_BYTES, "little")
    if len(found) != len(buffer) or checksum != stored:
        raise ValueError(
            f"{len(buffer)} bytes at {offset} have checksum {checksum.hex()}, not {stored.hex()}"
        )
    return body


def open_shards(folder: Path, array: Array) -> ShardReader | None:
    """Return a reader for an array in a folder, or None where only Zarr can read it."""
    metadata: dict[str, Any] = array.metadata.to_dict()
    shards, shape = array.shards, array.shape
    if shards is None or shards[1:] != shape[1:] or array.chunks[1:] != shape[1:]:
        return None
    [codec] = metadata["codecs"]
    configuration = codec["configuration"]
    inner = [inner["name"] for inner in configuration["codecs"]]
    index = [inner["name"] for inner in configuration["index_codecs"]]
    little = configuration["codecs"][0].get("configuration", {}).get("endian") == "little"
    known = inner == ["bytes", "blosc", "crc32c"] and index == ["bytes", "crc32c"] and little
    ends = str(getattr(configuration["index_location"], "value", configuration["index_location"])) == "end"
    return ShardReader(folder, array) if known and ends else None
