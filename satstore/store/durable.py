"""The Zarr store that both kinds of stores are written through: durable, its digests in the commit log."""

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Self

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from satstore.commits import CommitLog, is_under
from satstore.files import Digest, write_file


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
