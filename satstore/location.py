"""Where a store lies, and what is asked of that place besides Zarr's own reading and writing."""

import shutil
from pathlib import Path
from typing import Protocol

from satstore.errors import NotFoundError


class Location(Protocol):
    """A place that holds a store: objects of bytes under keys such as ``pool4/train/label/c/0``."""

    @property
    def name(self) -> str:
        """The last part of its path, by which the commit log knows the store."""

    def __str__(self) -> str:
        """Return the path or URL, as people read it: without credentials."""

    def exists(self) -> bool:
        """Tell whether there is a store: an object ``zarr.json``."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size in bytes of every object under a prefix, by key."""

    def read(self, key: str) -> bytes:
        """Return an object's content.

        Raises
        ------
        NotFoundError
            If there is none.
        """

    def remove(self, prefix: str = "") -> int:
        """Remove every object under a prefix, and return how many bytes that freed."""


class Folder:
    """A folder of this machine's file system.

    Attributes
    ----------
    path
        The folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.name = self.path.name

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"<Folder {self.path}>"

    def exists(self) -> bool:
        """Tell whether there is a store: a file ``zarr.json``."""
        return (self.path / "zarr.json").is_file()

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size in bytes of every file under a prefix, by key."""
        files = (file for file in (self.path / prefix).rglob("*") if file.is_file())
        return {file.relative_to(self.path).as_posix(): file.stat().st_size for file in files}

    def read(self, key: str) -> bytes:
        """Return a file's content; see :meth:`Location.read`."""
        try:
            return (self.path / key).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"{self.path} has no {key}") from None

    def remove(self, prefix: str = "") -> int:
        """Remove every file under a prefix; see :meth:`Location.remove`."""
        freed_bytes = sum(self.sizes(prefix).values())
        shutil.rmtree(self.path / prefix, ignore_errors=True)
        return freed_bytes
