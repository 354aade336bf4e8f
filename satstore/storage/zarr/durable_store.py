"""Zarr stores that write durably and keep digests in the commit log."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Self

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, ObjectStore

from satstore.errors import NotFoundError
from satstore.storage.commit_log import CommitLog, is_under
from satstore.storage.files import Digest, is_partial, make_folder
from satstore.storage.location import ROOT, Bucket, Folder, Location
from satstore.storage.safe_names import Key, as_group, as_key, is_key


class DurableStore(Store):
    """Zarr objects at a location, each written whole or not at all; :meth:`commit` records them in the log.

    A committed object is taken out of the log before it is changed or removed: a crash in between leaves it
    uncommitted, never committed and wrong. Subclasses define how Zarr reads; without a log, a store is for
    reading only.
    """

    def _track(self, location: Location, log: CommitLog | None) -> None:
        self.location = location
        self._log = log
        self._written: dict[Key, Digest] = {}
        self._committed = log.read(location.name).files if log else {}

    def commit(self, n_rows: Mapping[str, int] | None = None) -> None:
        """Commit the written objects, and the number of rows that groups hold with them."""
        assert self._log is not None
        # Also the metadata of parents, which a killed process may have written and not committed.
        above = {
            as_key(str(folder / "zarr.json"))
            for key in self._written
            for folder in PurePosixPath(key).parents
        }
        for key in sorted(above - self._written.keys() - self._committed.keys()):
            try:
                self._written[key] = Digest.of(self.location.read(key))
            except NotFoundError:
                continue
        self._log.append(self.location.name, self._written, n_rows)
        self._committed |= self._written
        self._written = {}

    @property
    def has_changes(self) -> bool:
        """Tell whether objects were written that are not committed."""
        return bool(self._written)

    def remove_object(self, key: str) -> None:
        """Remove one object, first from the log."""
        self.forget(key)
        self.location.delete([as_key(key)])

    def remove_group(self, path: str) -> None:
        """Remove all objects below a path, first from the log."""
        assert self._log is not None
        self._log.remove(self.location.name, path)
        self._drop(path)
        self.location.remove(as_group(path))

    def remove_uncommitted(self, path: str) -> None:
        """Remove the objects below a path that are not committed; a killed process left them, maybe torn.

        Zarr reads an existing shard before it writes it, even if it replaces all of it.
        """
        found = self.location.sizes(as_group(path))
        self.location.delete(key for key in found if key not in self._committed)

    def _drop(self, path: str) -> bool:
        # Zarr writes from several threads: the keys are copied at once, and may be gone by now.
        for key in [key for key in list(self._written) if is_under(key, path)]:
            self._written.pop(key, None)
        gone = [key for key in list(self._committed) if is_under(key, path)]
        for key in gone:
            self._committed.pop(key, None)
        return bool(gone)

    def forget(self, path: str) -> None:
        """Take an object, or all below a path, out of the log."""
        if self._drop(path):
            assert self._log is not None
            self._log.remove(self.location.name, path)

    def write_object(self, name: str, *parts: bytes) -> None:
        """Write one object, in one part or several; the next commit includes it."""
        key = as_key(name)
        if key in self._committed:
            self.forget(key)
        self.location.write(key, *parts)
        self._written[key] = Digest.of(*parts)

    async def set(self, key: str, value: Buffer) -> None:
        """Store one object."""
        self._check_writable()
        await self._ensure_open()
        await asyncio.to_thread(self.write_object, key, value.to_bytes())

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Store one object unless it exists; a store has one writer, so there is no race."""
        if not await self.exists(key):
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        """Delete one object."""
        self._check_writable()
        await asyncio.to_thread(self.remove_object, key)

    async def delete_dir(self, prefix: str) -> None:
        """Delete all objects below a prefix."""
        self._check_writable()
        self.forget(prefix)
        await asyncio.to_thread(self.location.remove, as_group(prefix.rstrip("/")))


class DurableFolder(DurableStore, LocalStore):
    """A folder of Zarr objects, written durably, and read by Zarr itself if they are plain files."""

    location: Folder

    def __init__(self, location: Folder, log: CommitLog | None = None, *, read_only: bool = False) -> None:
        super().__init__(location.path, read_only=read_only or log is None)
        self._track(location, log)

    def with_read_only(self, read_only: bool = False) -> Self:
        """Return the same store, for reading only or not."""
        return type(self)(Folder(self.root), self._log, read_only=read_only)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return an object or a range of it, None where there is none."""
        self.location.check_readable(as_key(key))
        return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return ranges of objects."""
        ranges = list(key_ranges)
        for key, _ in ranges:
            self.location.check_readable(as_key(key))
        return await super().get_partial_values(prototype, ranges)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return an object or a range of it; see :meth:`get`."""
        self.location.check_readable(as_key(key))
        return super().get_sync(key, prototype=prototype, byte_range=byte_range)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """List the names directly below a prefix, without temporary files of current writes."""
        async for name in super().list_dir(prefix):
            if is_key(name) and not is_partial(name):
                yield name

    def set_sync(self, key: str, value: Buffer) -> None:
        """Store one object; see :meth:`set`."""
        self._ensure_open_sync()
        self._check_writable()
        self.write_object(key, value.to_bytes())

    def delete_sync(self, key: str) -> None:
        """Delete one object; see :meth:`delete`."""
        self._check_writable()
        self.remove_object(key)


class DurableBucket(DurableStore, ObjectStore[Any]):
    """A bucket's Zarr objects, read by Zarr through obstore; its errors are turned into one line."""

    location: Bucket

    def __init__(self, location: Bucket, log: CommitLog | None = None, *, read_only: bool = False) -> None:
        super().__init__(location.store, read_only=read_only or log is None)
        self._track(location, log)

    def __str__(self) -> str:
        return str(self.location)

    def with_read_only(self, read_only: bool = False) -> Self:
        """Return the same store, for reading only or not."""
        return type(self)(self.location, self._log, read_only=read_only)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return an object or a range of it, None where there is none."""
        with self.location.refusals():
            return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return ranges of objects."""
        with self.location.refusals():
            return await super().get_partial_values(prototype, key_ranges)

    async def exists(self, key: str) -> bool:
        """Tell whether there is an object."""
        with self.location.refusals():
            return await super().exists(key)

    def list(self) -> AsyncGenerator[str, None]:
        """List all keys."""
        return self._list_explained(super().list())

    def list_prefix(self, prefix: str) -> AsyncGenerator[str, None]:
        """List the keys under a prefix."""
        return self._list_explained(super().list_prefix(prefix))

    def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """List the names directly below a prefix."""
        return self._list_explained(super().list_dir(prefix))

    async def _list_explained(self, keys: AsyncIterator[str]) -> AsyncGenerator[str, None]:
        with self.location.refusals():
            async for key in keys:
                yield key


def open_or_mend(store: DurableStore) -> zarr.Group:
    """Open a store's root for writing; replace its metadata if they are not a group's."""
    try:
        return zarr.open_group(store, mode="a")
    except (ValueError, KeyError, TypeError):
        store.remove_object("zarr.json")
        return zarr.open_group(store, mode="a")


def open_store(location: Location, log: CommitLog | None = None) -> DurableFolder | DurableBucket:
    """Return the Zarr store at a location; without the run's commit log, for reading only."""
    if isinstance(location, Bucket):
        return DurableBucket(location, log)
    assert isinstance(location, Folder)
    if log is not None:
        # Zarr would make it too, but not so that it survives a power loss.
        make_folder(location.path_of(ROOT, to_change=True))
    return DurableFolder(location, log)
