"""How stores are laid out: keys, encodings, and the durable Zarr store that both kinds are written through.

The layout is that of docs/store-format.md: Zarr v3, ``dimension_names`` on every array, NaN where nothing was
written. Only this package imports zarr.
"""

import asyncio
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import quote

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from satstore.commits import CommitLog, is_under
from satstore.errors import ConfigError, CorruptError, NotFoundError
from satstore.files import FORMAT_VERSION, Digest, write_file

RESERVED_KEYS = frozenset({"label", "sample_id", "zarr.json"})

Array = zarr.Array[Any]

CHUNK_BYTES = 2 * 2**20
SHARD_BYTES = 128 * 2**20
FLOAT16_BYTES = 2

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Pooling to layer to the shape of one sample's latent."""


def encode_layer(name: str) -> str:
    """Return the store key of a layer: its name where that is a plain key, else percent-encoded.

    A name that other keys of the store have, or that would leave its folder, is encoded from its first
    character on; one too long for a file name is cut and ends with a digest of the whole. Different names
    have different keys; on a file system that folds case, names that differ in nothing else would meet.
    """
    key = quote(name, safe="-_.").replace("~", "%7E")  # a "~" tells that a key was cut
    if key in RESERVED_KEYS or key.startswith((".", "__")):
        key = f"%{ord(key[0]):02X}{key[1:]}"
    if not key:  # the model itself, where it is the only layer
        return "%"
    if len(key) > 128:
        key = f"{key[:96]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return key


def choose_shard_rows(shapes: Shapes, n_samples: int, memory_bytes: int) -> int:
    """Return how many samples a shard holds: a power of two, the same for all layers.

    All layers' and poolings' shards are filled at once, so together they have to fit the memory given; the
    widest layer's shard is kept to 128 MiB, and one shard is all that a small split needs.

    Raises
    ------
    ConfigError
        If the memory doesn't hold one sample.
    """
    row_bytes = [FLOAT16_BYTES * int(np.prod(s)) for layers in shapes.values() for s in layers.values()]
    most = min(memory_bytes // sum(row_bytes), max(1, SHARD_BYTES // max(row_bytes)))
    if most < 1:
        raise ConfigError(
            f"one sample's latents take {sum(row_bytes)} bytes, the memory limit leaves {memory_bytes} for "
            "them; raise --memory-limit, or take a smaller pooling or fewer layers"
        )
    return int(2 ** min(int(most).bit_length() - 1, max(0, n_samples - 1).bit_length()))


def choose_chunk_rows(sample_shape: tuple[int, ...], shard_rows: int) -> int:
    """Return how many samples a chunk holds: a power of two that divides the shard, about 2 MiB of them."""
    row_bytes = FLOAT16_BYTES * int(np.prod(sample_shape))
    return int(min(shard_rows, 2 ** (max(1, CHUNK_BYTES // row_bytes).bit_length() - 1)))


class DurableStore(LocalStore):
    """A folder of Zarr objects, each written durably; :meth:`commit` says in the log what was written.

    What was committed and is about to change or to go is taken out of the log first: a crash in between
    leaves it uncommitted, never committed and wrong.
    """

    def __init__(self, root: Path | str, log: CommitLog | None = None, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only or log is None)
        self._log = log
        self._written: dict[str, Digest] = {}
        self._committed = log.read(self.root.name).files if log else {}

    def with_read_only(self, read_only: bool = False) -> Self:
        """Return the same store, for reading only or not."""
        return type(self)(self.root, self._log, read_only=read_only)

    def commit(self, n_rows: Mapping[str, int] | None = None) -> None:
        """Commit what was written, and the number of rows that groups hold with it."""
        assert self._log is not None
        # The metadata above, too, which a killed process may have written and never committed.
        above = {str(folder / "zarr.json") for key in self._written for folder in PurePosixPath(key).parents}
        for key in sorted(above - self._written.keys() - self._committed.keys()):
            if (self.root / key).exists():
                self._written[key] = Digest.of_file(self.root / key)
        self._log.append(self.root.name, self._written, n_rows)
        self._committed |= self._written
        self._written = {}

    def remove_group(self, path: str) -> None:
        """Remove all that lies under a path, the log first."""
        assert self._log is not None
        self._log.remove(self.root.name, path)
        self._drop(path)
        shutil.rmtree(self.root / path, ignore_errors=True)

    def remove_uncommitted(self, path: str) -> None:
        """Remove the files under a path that are not committed: a killed process left them, torn maybe.

        Zarr reads a shard that is there before it writes it, even where it replaces all of it.
        """
        for file in (self.root / path).rglob("*"):
            if file.is_file() and file.relative_to(self.root).as_posix() not in self._committed:
                file.unlink()

    def _drop(self, path: str) -> bool:
        # Zarr writes from several threads: the keys are copied at once, and may be gone by now.
        for key in [key for key in list(self._written) if is_under(key, path)]:
            self._written.pop(key, None)
        gone = [key for key in list(self._committed) if is_under(key, path)]
        for key in gone:
            self._committed.pop(key, None)
        return bool(gone)

    def _forget(self, path: str) -> None:
        if self._drop(path):
            assert self._log is not None
            self._log.remove(self.root.name, path)

    async def delete(self, key: str) -> None:
        """Delete one object."""
        self._forget(key)
        await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Delete all that lies under a prefix."""
        self._forget(prefix)
        await super().delete_dir(prefix)

    def delete_sync(self, key: str) -> None:
        """Delete one object; see :meth:`delete`."""
        self._forget(key)
        super().delete_sync(key)

    async def _set(self, key: str, value: Buffer, exclusive: bool = False) -> None:
        self._check_writable()
        if not self._is_open:
            await self._open()
        if exclusive and (self.root / key).exists():
            return
        await asyncio.to_thread(self._write, key, value.to_bytes())

    def set_sync(self, key: str, value: Buffer) -> None:
        """Store one object; see :meth:`set`."""
        self._ensure_open_sync()
        self._check_writable()
        self._write(key, value.to_bytes())

    def _write(self, key: str, content: bytes) -> None:
        if key in self._committed:
            self._forget(key)
        write_file(self.root / key, content)
        self._written[key] = Digest.of(content)


def create_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    dimensions: tuple[str, ...],
    **options: Any,
) -> Array:
    """Create an array in the house's encoding: Blosc-lz4 with bitshuffle, a checksum, NaN where unset."""
    floating = np.issubdtype(np.dtype(dtype), np.floating)
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        dimension_names=dimensions,
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
        fill_value=np.nan if floating else -1,
        **options,
    )


def open_root(root: Path) -> zarr.Group:
    """Open a store's root group for reading, and check that it is of a format that is known here."""
    if not (root / "zarr.json").exists():
        raise NotFoundError(f"no store at {root}: it has no zarr.json")
    try:
        group = zarr.open_group(DurableStore(root), mode="r")
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"the store at {root} can't be opened: {error}") from error
    check_version(group, root)
    return group


def check_version(group: zarr.Group, root: Path) -> None:
    """Check that a store is of a format that is known here."""
    version = group.attrs.get("format_version")
    if version != FORMAT_VERSION:
        raise CorruptError(
            f"the store at {root} has format version {version}; this one reads {FORMAT_VERSION}"
        )


def get_array(group: zarr.Group, name: str) -> Array:
    """Return an array of a group.

    Raises
    ------
    CorruptError
        If it has none of that name.
    """
    item = group.get(name)
    if not isinstance(item, zarr.Array):
        raise CorruptError(f"{group.store_path} has no array {name!r}")
    return item
