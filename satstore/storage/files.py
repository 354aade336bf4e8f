"""Durable files: a file is written whole or not at all, also after a power loss."""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from satstore.errors import SatstoreError
from satstore.storage.safe_files import check_appendable, open_file, walk_files
from satstore.system.limits import free_disk

FORMAT_VERSION = 1
"""The version of the formats on disk: manifests and stores."""


class WriteError(SatstoreError, OSError):
    """A file that can't be written: no space, no permission, a bad disk."""


@dataclass(frozen=True)
class Digest:
    """A file's size in bytes, and its SHA-256 as hexadecimal digits."""

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, *parts: bytes | memoryview) -> Self:
        """Compute the digest of bytes, in one part or several."""
        sha256 = hashlib.sha256()
        for part in parts:
            sha256.update(part)
        return cls(sum(memoryview(part).nbytes for part in parts), sha256.hexdigest())

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """Compute the digest of a file, read in pieces; a link is refused."""
        with open_file(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(file.tell(), sha256)


WRITER = secrets.token_hex(4)
"""The name of this process, and of those that it forks, in its temporary files."""


PARTIAL = re.compile(r"\..*\.([0-9a-f]{8})\.[0-9a-f]{8}\.partial", re.DOTALL)
"""The names of :func:`write_file`'s temporary files: the file's name, the writer, and a random number."""


def is_partial(name: str) -> bool:
    """Tell whether a name is that of a temporary file of :func:`write_file`."""
    return name.startswith(".") and name.endswith(".partial")


def remove_partials(folder: Path, writers: Collection[str]) -> None:
    """Remove the temporary files that some killed processes left in a folder; see :data:`WRITER`."""
    for path, _ in walk_files(folder):
        found = PARTIAL.fullmatch(path.name)
        if found is not None and found[1] in writers:
            path.unlink(missing_ok=True)


def write_file(path: Path, *parts: bytes | memoryview, durable: bool = True) -> None:
    """Replace a file's content, in one part or several: temporary file, fsync, rename, fsync of the folder.

    A link in its place is replaced too; the file that it leads to is not changed. A file that need not be
    `durable` is not synced, and no folder is made for it. Raises WriteError if the disk refuses; the old
    content stays.
    """
    size_bytes = sum(memoryview(part).nbytes for part in parts)
    temporary = path.with_name(f".{path.name[:200]}.{WRITER}.{secrets.token_hex(4)}.partial")
    with refusals(path, size_bytes):
        if durable:
            _make_folder(path.parent)
        try:
            with temporary.open("xb") as file:
                file.writelines(parts)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        if durable:
            sync_folder(path.parent)


def append_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Append to a file, in one write if the disk takes it whole; fsync it if `durable`.

    Raises WriteError if the disk refuses.
    """
    with refusals(path, len(content)):
        is_new = not path.exists()
        with path.open("ab", buffering=0) as file:
            rest = memoryview(content)
            while rest:  # a disk that fills up takes a part and says so only when asked for more
                rest = rest[file.write(rest) :]
            if durable:
                os.fsync(file.fileno())
        if is_new and durable:
            sync_folder(path.parent)


def append_log(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Append to a log of a run folder, which may come from somebody else; see :func:`append_file`.

    Raises WriteError too if the path is a link or no file: no other file is written to.
    """
    with refusals(path, len(content)):
        check_appendable(path)
    append_file(path, content, durable=durable)


def make_folder(folder: Path) -> None:
    """Make missing folders so that they survive a power loss; raise WriteError if the disk refuses."""
    with refusals(folder, 0):
        _make_folder(folder)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries (renames, new files) survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def refusals(path: Path, size_bytes: int, what: str = "written") -> Iterator[None]:
    """Turn errors of the disk into a WriteError that names the reason, the free space and the remedy."""
    try:
        yield
    except OSError as error:
        if isinstance(error, SatstoreError):
            raise
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason += (
                f": {size_bytes:,} bytes are to be written where {free_disk(path):,} are free; what was "
                "committed stays, make room and give the same command again"
            )
        raise WriteError(f"{path} can't be {what}: {reason}") from error
