"""Locations of stores: a folder, or a prefix of a bucket on object storage."""

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

from satstore.errors import ConfigError, CorruptError, NotFoundError, UnreachableError
from satstore.storage.files import Digest, WriteError, refusals, remove_partials, write_file
from satstore.storage.safe_files import check_folders, describe_kind, is_file, read_content, walk_files
from satstore.storage.safe_names import Key, is_key
from satstore.system.text import describe_size

BUCKET_SCHEMES = ("s3", "gs", "az")
MAX_RETRIES = 6
RETRY_TIMEOUT_S = 15


ROOT = Key("")
"""The prefix of all keys of a store."""


class Location(Protocol):
    """The location of a store: objects of bytes under keys such as ``pool4/train/label/c/0``.

    Keys are checked by :mod:`.safe_names`; objects of other names don't belong to the store.
    """

    @property
    def name(self) -> str:
        """The last part of its path, which identifies the store in the commit log."""

    def __str__(self) -> str:
        """Return the path or URL, without credentials."""

    def exists(self) -> bool:
        """Tell whether there is a store: an object ``zarr.json``."""

    def sizes(self, prefix: Key = ROOT) -> dict[Key, int]:
        """Return the size in bytes of every object under a prefix, by key."""

    def read(self, key: Key) -> bytes:
        """Return an object's content; raise NotFoundError if there is none."""

    def digest(self, key: Key) -> Digest:
        """Return an object's size and digest, read in pieces; raise NotFoundError if there is none."""

    def write(self, key: Key, *parts: bytes) -> None:
        """Write or replace an object, in one part or several; it is written whole or not at all."""

    def delete(self, keys: Iterable[Key]) -> None:
        """Remove objects; missing ones are skipped."""

    def remove(self, prefix: Key = ROOT) -> int:
        """Remove every object under a prefix; return the number of bytes that were freed.

        Raises WriteError if some could not be removed; names the bytes that were freed.
        """

    def remove_partials(self, writers: Collection[str]) -> None:
        """Remove the unfinished objects that killed writers left."""


class Folder:
    """A folder of this machine's file system."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.name = self.path.name

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"<Folder {self.path}>"

    def exists(self) -> bool:
        """Tell whether there is a store: a file ``zarr.json``."""
        return is_file(self.path / "zarr.json")

    def sizes(self, prefix: Key = ROOT) -> dict[Key, int]:
        """Return the size in bytes of every file under a prefix, by key; links are none."""
        folder = self.path_of(prefix)
        if prefix and folder.is_symlink():
            return {}
        try:
            found = {path.relative_to(self.path).as_posix(): size for path, size in walk_files(folder)}
        except OSError as error:
            raise CorruptError(f"{folder} can't be listed: {error.strerror or error}") from error
        return {Key(name): size_bytes for name, size_bytes in found.items() if is_key(name)}

    def path_of(self, key: Key, *, to_change: bool = False) -> Path:
        """Return the path of an object or a group; if `to_change`, the store's own folder is checked too.

        Raises CorruptError if a folder that it is in is a link.
        """
        check_folders(self.path, self.path / key, with_root=to_change)
        return self.path / key

    def check_readable(self, key: Key) -> None:
        """Check that a path is a file or a folder, if it exists.

        Raises CorruptError if it is a link, a named pipe or a device, or in a folder that is a link.
        """
        path = self.path_of(key)
        try:
            mode = path.lstat().st_mode
        except OSError:
            return
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise CorruptError(f"{path} is {describe_kind(mode)}; expected a file: remove it")

    def read(self, key: Key) -> bytes:
        """Return a file's content; see :meth:`Location.read`."""
        with self._reading(key):
            return read_content(self.path_of(key))

    def digest(self, key: Key) -> Digest:
        """Return a file's size and digest; see :meth:`Location.digest`."""
        with self._reading(key):
            return Digest.of_file(self.path_of(key))

    @contextmanager
    def _reading(self, key: Key) -> Iterator[None]:
        try:
            yield
        except CorruptError:
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFoundError(f"{self.path} has no {key}") from None
        except OSError as error:
            raise CorruptError(f"{self.path / key} can't be read: {error.strerror or error}") from error

    def write(self, key: Key, *parts: bytes) -> None:
        """Replace a file durably; see :func:`satstore.storage.files.write_file`."""
        write_file(self.path_of(key, to_change=True), *parts)

    def delete(self, keys: Iterable[Key]) -> None:
        """Remove files; see :meth:`Location.delete`."""
        for key in keys:
            path = self.path_of(key, to_change=True)
            with refusals(path, 0, "removed"):
                path.unlink(missing_ok=True)

    def remove(self, prefix: Key = ROOT) -> int:
        """Remove every file under a prefix; see :meth:`Location.remove`."""
        folder, reasons = self.path_of(prefix, to_change=True), []
        n_bytes = sum(self.sizes(prefix).values())
        try:
            if folder.is_symlink():
                folder.unlink()
            elif folder.is_dir():
                shutil.rmtree(folder, onerror=lambda *failure: reasons.append(failure[2][1]))
        except OSError as error:
            reasons.append(error)
        left = sum(self.sizes(prefix).values())
        if reasons:
            reason = getattr(reasons[0], "strerror", None) or reasons[0]
            raise WriteError(
                f"{folder} can't be removed: {reason}; {describe_size(n_bytes - left)} were freed, "
                f"{describe_size(left)} are left: mend that, and give the command again"
            )
        return n_bytes

    def remove_partials(self, writers: Collection[str]) -> None:
        """Remove what killed writers left; see :func:`satstore.storage.files.remove_partials`."""
        remove_partials(self.path_of(ROOT, to_change=True), writers)


class Bucket:
    """A prefix of a bucket on object storage, reached through obstore.

    Credentials and endpoint come from the environment alone, as obstore reads it (``AWS_ACCESS_KEY_ID``,
    ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``, ``AWS_ALLOW_HTTP``; ``AWS_TIMEOUT`` and
    ``AWS_CONNECT_TIMEOUT`` bound a request, such as ``10s``).
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.name = self.url.rpartition("/")[2]

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"<Bucket {self.url}>"

    def __reduce__(self) -> tuple[type["Bucket"], tuple[str]]:
        return Bucket, (self.url,)  # another process makes its own client, from its own environment

    @cached_property
    def store(self) -> Any:
        """The obstore client; raises ConfigError if obstore is missing or the environment can't be used."""
        from datetime import timedelta

        try:
            from obstore.store import from_url
        except ImportError:
            raise ConfigError(
                f"{self.url} is on object storage, which needs obstore: pip install obstore"
            ) from None
        retries: Any = {"max_retries": MAX_RETRIES, "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S)}
        with self.refusals():
            # No client options: obstore would take them in place of the environment's, not beside them.
            return from_url(self.url, retry_config=retries)

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Turn obstore's errors into one line, without parts of the request, which may have secrets.

        They become UnreachableError, or NotFoundError if there is no such bucket. Raises ConfigError in a
        process that was forked off one that uses object storage: a request would never end.
        """
        from obstore.exceptions import BaseError

        if _first_user() != os.getpid():
            raise ConfigError(
                f"{self.url} can't be reached from a process that was forked off one that uses object "
                'storage; start processes another way (multiprocessing_context="forkserver")'
            )
        try:
            yield
        except BaseError as error:
            if "<Code>NoSuchBucket<" in str(error):
                raise self._no_bucket() from None
            raise UnreachableError(
                f"{self.url} can't be reached: {_describe(error)}; check the URL, the network, and what the "
                "environment says (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …)"
            ) from None

    def exists(self) -> bool:
        """Tell whether there is a store: an object ``zarr.json``."""
        try:
            with self.refusals():
                self.store.head("zarr.json")
        except FileNotFoundError:
            return False
        return True

    def sizes(self, prefix: Key = ROOT) -> dict[Key, int]:
        """Return the size in bytes of every object under a prefix, by key."""
        try:
            with self.refusals():
                batches = self.store.list(prefix or None)
                found = {meta["path"]: meta["size"] for batch in batches for meta in batch}
        except FileNotFoundError:
            raise self._no_bucket() from None
        return {Key(name): size_bytes for name, size_bytes in found.items() if is_key(name)}

    def read(self, key: Key) -> bytes:
        """Return an object's content; see :meth:`Location.read`."""
        try:
            with self.refusals():
                return bytes(self.store.get(key).bytes())
        except FileNotFoundError:
            raise NotFoundError(f"{self.url} has no {key}") from None

    def digest(self, key: Key) -> Digest:
        """Return an object's size and digest; see :meth:`Location.digest`."""
        sha256, size_bytes = hashlib.sha256(), 0
        try:
            with self.refusals():
                for piece in self.store.get(key).stream():
                    sha256.update(piece)
                    size_bytes += len(piece)
        except FileNotFoundError:
            raise NotFoundError(f"{self.url} has no {key}") from None
        return Digest(size_bytes, sha256.hexdigest())

    def write(self, key: Key, *parts: bytes) -> None:
        """Put an object, by several requests where it is large: it appears whole, once all are there."""
        try:
            with self.refusals():
                self.store.put(key, b"".join(parts) if len(parts) > 1 else parts[0])
        except FileNotFoundError:
            raise self._no_bucket() from None

    def delete(self, keys: Iterable[Key]) -> None:
        """Remove objects; see :meth:`Location.delete`."""
        gone = list(keys)
        if gone:
            with suppress(FileNotFoundError), self.refusals():
                self.store.delete(gone)

    def remove(self, prefix: Key = ROOT) -> int:
        """Remove every object under a prefix; see :meth:`Location.remove`."""
        sizes = self.sizes(prefix)
        self.delete(sizes)
        return sum(sizes.values())

    def remove_partials(self, writers: Collection[str]) -> None:
        """Do nothing: an object appears whole, and killed writers leave nothing."""

    def _no_bucket(self) -> NotFoundError:
        return NotFoundError(f"no bucket for {self.url}: make it first, or give another --latents-dir")


@cache
def _first_user() -> int:
    """Return the id of the process that first used obstore; processes forked off it lack its threads."""
    return os.getpid()


def _describe(error: Exception) -> str:
    # A server may repeat key and signature in its answer, which obstore quotes: the error code is enough.
    text = re.sub(r"^Generic \w+ error: ", "", str(error))
    code = re.search(r"<Code>(\w+)</Code>", text)
    reason = re.sub(r"https?://\S+ ?", "", text.partition("\n")[0].partition("<")[0])
    return " ".join([*reason.rstrip(": ").split(), *([f"({code[1]})"] if code else [])])


def is_url(place: str | Path) -> bool:
    """Tell whether a place is a URL, rather than a path."""
    return isinstance(place, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", place) is not None


def locate(place: str | Path) -> Location:
    """Return the location of a path or a URL (``s3://bucket/prefix``, ``gs://``, ``az://``, ``file:///``).

    Raises ConfigError if the URL has another scheme, or has credentials or parameters, which are not
    repeated.
    """
    if not is_url(place):
        return Folder(place)
    url = str(place)
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"a {parts.scheme}:// URL with credentials or parameters in it is refused; expected scheme://bucket/"
            "prefix alone: give credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …)"
        )
    if parts.scheme == "file":
        path = unquote(parts.path)
        if not path.isprintable():
            raise ConfigError(f"no store can lie at {url!r}; expected a path without control characters")
        return Folder(path)
    if parts.scheme not in BUCKET_SCHEMES or not parts.netloc:
        known = ", ".join(f"{scheme}://bucket/prefix" for scheme in BUCKET_SCHEMES)
        raise ConfigError(f"no store can lie at {url!r}; expected a path, file:///path, {known}")
    return Bucket(url)


def join(place: str | Path, *names: str) -> str:
    """Return the absolute path, or the URL, of names below a place."""
    location = locate(place)
    if isinstance(location, Folder):
        return str(location.path.expanduser().absolute().joinpath(*names))
    return "/".join([str(location), *map(quote, names)])
