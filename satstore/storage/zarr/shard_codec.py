"""Encode and decode shards of satstore's own encoding: the same bytes as Zarr's, but faster.

A pass of a probe reads every chunk of a layer, and an extraction encodes them beside the forward pass. Zarr
passes each through half a dozen tasks and copies; here a chunk is read, checked, decoded and widened while it
is in the cache. Zarr itself reads arrays in other encodings, and those on object storage.
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

from satstore.analysis.floats import Floats, widen
from satstore.storage.safe_files import check_folders, open_file
from satstore.storage.zarr.layout import Array

CRC_BYTES = 4
SHUFFLES = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
MISSING = 2**64 - 1
"""The offset and size, in a shard's index, of a chunk that was not written."""


class ShardReader:
    """Reads ranges of rows from an array in a folder, whose shards and chunks hold whole samples."""

    def __init__(self, folder: Path, array: Array) -> None:
        assert array.shards is not None
        self.folder = folder
        self._shape, self._dtype = array.shape, array.dtype
        self._chunk_rows, self._shard_rows = array.chunks[0], array.shards[0]
        self._per_shard = self._shard_rows // self._chunk_rows
        self._array = array

    def read(self, start: int, stop: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read rows start to stop, into ``out`` if given; those that were not written are NaN.

        ``out`` has the shape and dtype of the rows, and is C-contiguous; whole chunks are decoded right into
        it. Many threads may read at once. Raises ValueError if the checksum of a chunk or an index is wrong,
        OSError if a shard can't be read.
        """
        rows = np.empty((stop - start, *self._shape[1:]), self._dtype) if out is None else out
        scratch = np.empty((0, *self._shape[1:]), self._dtype)
        for first, content in self._chunks(start, stop):
            low, high = max(start, first), min(stop, first + self._chunk_rows)
            part = rows[low - start : high - start]
            if len(part) == self._chunk_rows:
                _decode(content, part)
                continue
            if not len(scratch):
                scratch = np.empty((self._chunk_rows, *self._shape[1:]), self._dtype)
            _decode(content, scratch)
            part[...] = scratch[low - first : high - first]
        return rows

    def read_floats(self, start: int, stop: int, out: Floats) -> None:
        """Read rows start to stop, flattened, into a float32 array; errors are those of :meth:`read`."""
        decoded = np.empty((self._chunk_rows, int(np.prod(self._shape[1:]))), self._dtype)
        for first, content in self._chunks(start, stop):
            _decode(content, decoded)
            low, high = max(start, first), min(stop, first + self._chunk_rows)
            widen(decoded[low - first : high - first], out[low - start : high - start])

    def _chunks(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.uint8] | None]]:
        """Yield (first row, encoded bytes) of each chunk; None for one that was not written.

        The bytes' memory is used again for the next chunk.
        """
        chunk_rows = self._chunk_rows
        buffer = np.empty(0, np.uint8)
        for shard in range(start // self._shard_rows, -(-stop // self._shard_rows)):
            first = shard * self._shard_rows
            within = range(max(start, first) - first, min(stop, first + self._shard_rows) - first)
            with self._open(shard) as file:
                index = self._read_index(file)
                for chunk in range(within.start // chunk_rows, -(-within.stop // chunk_rows)):
                    offset, size = map(int, index[chunk])
                    if len(buffer) < size < MISSING:
                        buffer = np.empty(size, np.uint8)
                    is_missing = offset == MISSING
                    content = None if is_missing else _read_checked(file, offset, buffer[:size])
                    yield first + chunk * chunk_rows, content

    @contextmanager
    def _open(self, shard: int) -> Iterator[int | None]:
        """Open a shard's file; yield None if it was not written."""
        path = self.folder / shard_key(self._array, shard)
        check_folders(self.folder, path)
        try:
            file = open_file(path)
        except FileNotFoundError:
            yield None
            return
        with file:
            yield file.fileno()

    def _read_index(self, file: int | None) -> NDArray[np.uint64]:
        """Read offset and size of each chunk of a shard."""
        if file is None:
            return np.full((self._per_shard, 2), MISSING, np.uint64)
        content = np.empty(16 * self._per_shard + CRC_BYTES, np.uint8)
        end = max(len(content), os.fstat(file).st_size)
        return _read_checked(file, end - len(content), content).view("<u8").reshape(self._per_shard, 2)


def shard_key(array: Array, shard: int) -> str:
    """Return the key of a shard of whole samples, relative to the array's."""
    return f"c/{shard}{'/0' * (array.ndim - 1)}"


def encode_shard(array: Array, rows: NDArray[Any]) -> list[bytes]:
    """Encode the rows of one shard, in consecutive parts; the array's last shard may lack rows.

    Rows are converted to the array's dtype, a chunk at a time. Chunks of nothing but NaN are left out, as
    Zarr does; a shard of such chunks has only an index.
    """
    assert array.shards is not None
    chunk_rows, per_shard = array.chunks[0], array.shards[0] // array.chunks[0]
    index = np.full((per_shard, 2), MISSING, "<u8")
    settings = blosc_settings(array)
    parts, offset = [], 0
    for chunk, start in enumerate(range(0, len(rows), chunk_rows)):
        values = np.ascontiguousarray(rows[start : start + chunk_rows], array.dtype)
        if is_all_nan(values):
            continue
        if len(values) < chunk_rows:
            padding = np.full((chunk_rows - len(values), *values.shape[1:]), np.nan, values.dtype)
            values = np.concatenate([values, padding])
        body: bytes = blosc.compress(values, *settings)
        parts += [body, _checksum(body)]
        index[chunk] = offset, len(body) + CRC_BYTES
        offset += len(body) + CRC_BYTES
    entries = index.tobytes()
    return [*parts, entries, _checksum(entries)]


def blosc_settings(array: Array) -> tuple[bytes, int, int, int]:
    """Read Blosc's settings from an array's metadata: compressor, level, shuffle, block size."""
    metadata: dict[str, Any] = array.metadata.to_dict()
    _, compressor, _ = metadata["codecs"][0]["configuration"]["codecs"]
    found = {name: getattr(value, "value", value) for name, value in compressor["configuration"].items()}
    return found["cname"].encode(), found["clevel"], SHUFFLES[found["shuffle"]], found["blocksize"]


def is_all_nan(values: NDArray[Any]) -> bool:
    """Tell whether all values are NaN; nearly always, the first one shows that they are not."""
    return bool(np.isnan(values.reshape(-1)[:1]).all() and np.isnan(values).all())


def _checksum(content: "bytes | NDArray[np.uint8]") -> bytes:
    return int(google_crc32c.value(content)).to_bytes(CRC_BYTES, "little")


def _read_checked(file: int | None, offset: int, buffer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Read bytes whose last four are the checksum of the others; check it, and return the others."""
    assert file is not None
    found = buffer[: os.preadv(file, [buffer.data], offset)]
    body, stored = found[:-CRC_BYTES], found[-CRC_BYTES:].tobytes()
    checksum = _checksum(body)
    if len(found) != len(buffer) or checksum != stored:
        raise ValueError(
            f"{len(buffer)} bytes at {offset} have checksum {checksum.hex()}, not {stored.hex()}"
        )
    return body


def _decode(content: NDArray[np.uint8] | None, out: NDArray[Any]) -> None:
    """Decode a chunk into an array of its shape: NaN if it was not written."""
    if content is None:
        out[...] = np.nan
    else:
        blosc.decompress(content, out)


def open_shards(folder: Path, array: Array) -> ShardReader | None:
    """Return a reader for an array in a folder; None if only Zarr can read it."""
    return ShardReader(folder, array) if is_house_encoding(array) else None


def is_house_encoding(array: Array) -> bool:
    """Tell whether an array has the shards and encoding that layout.create_array gives latents."""
    shards, shape = array.shards, array.shape
    if shards is None or shards[1:] != shape[1:] or array.chunks[1:] != shape[1:]:
        return False
    metadata: dict[str, Any] = array.metadata.to_dict()
    [codec] = metadata["codecs"]
    configuration = codec["configuration"]
    inner = [inner["name"] for inner in configuration["codecs"]]
    index = [inner["name"] for inner in configuration["index_codecs"]]
    little = configuration["codecs"][0].get("configuration", {}).get("endian") == "little"
    known = inner == ["bytes", "blosc", "crc32c"] and index == ["bytes", "crc32c"] and little
    ends = str(getattr(configuration["index_location"], "value", configuration["index_location"])) == "end"
    return known and ends
