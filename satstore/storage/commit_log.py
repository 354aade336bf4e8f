"""The commit log: the files of a run's stores that are whole, and their digests."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from satstore.errors import CorruptError
from satstore.storage.files import Digest, append_log
from satstore.storage.location import ROOT, Location
from satstore.storage.safe_files import open_file
from satstore.storage.safe_names import Key, as_group, as_key


def is_metadata(key: str) -> bool:
    """Tell whether a store's file describes an array or a group."""
    return key.endswith("zarr.json")


def is_anything(key: str) -> bool:
    """Return True for every file: all are to be read."""
    return True


TYPES = {
    "store": str,
    "key": str,
    "size_bytes": int,
    "sha256": str,
    "group": str,
    "n_rows": int,
    "removed": str,
}


@dataclass
class Committed:
    """The committed content of one store: each file's digest, and the number of rows of each group."""

    files: dict[Key, Digest] = field(default_factory=dict)
    n_rows: dict[str, int] = field(default_factory=dict)

    def under(self, group: str) -> dict[Key, Digest]:
        """Return the files below a group."""
        return {key: digest for key, digest in self.files.items() if is_under(key, group)}

    def drop(self, group: str) -> None:
        """Drop the files and the numbers of rows of a group."""
        self.files = {key: digest for key, digest in self.files.items() if not is_under(key, group)}
        self.n_rows = {key: n for key, n in self.n_rows.items() if not is_under(key, group)}

    def digest(self, *groups: str) -> str:
        """Compute the SHA-256 over names and contents of the files of some groups."""
        files = {name: digest for group in groups for name, digest in self.under(group).items()}
        names = "".join(f"{name} {files[name].sha256}\n" for name in sorted(files))
        return hashlib.sha256(names.encode()).hexdigest()

    def damaged(
        self, location: Location, group: str, reads: Callable[[str], bool] = is_metadata
    ) -> Iterator["Damage"]:
        """Find the files of a group that are not as committed; ``""`` is the whole store.

        Digests are compared of the files whose keys pass `reads`; of the others, presence and size alone.
        """
        sizes = location.sizes(as_group(group))
        for key, digest in self.under(group).items():
            size_bytes = sizes.get(key)
            is_read = size_bytes == digest.size_bytes and reads(key)
            damage = find_file_damage(key, digest, size_bytes, location.digest(key) if is_read else None)
            if damage is not None:
                yield damage

    def check(
        self, location: Location, group: str, remedy: str, reads: Callable[[str], bool] = is_metadata
    ) -> None:
        """Raise a CorruptError for the first damaged file of a group, with the remedy; see `damaged`."""
        for damage in self.damaged(location, group, reads):
            raise CorruptError(f"{location}/{damage}; {remedy}")


@dataclass(frozen=True)
class Damage:
    """A file of a store that is not as committed."""

    key: Key
    what: str

    def __str__(self) -> str:
        return f"{self.key} {self.what}"


def find_file_damage(
    key: Key, digest: Digest, size_bytes: int | None, found: Digest | None = None
) -> Damage | None:
    """Compare a file's size (None: it is missing), and its digest if given, with what was committed."""
    if size_bytes is None:
        return Damage(key, "is committed but not there")
    if size_bytes != digest.size_bytes:
        return Damage(key, f"has {size_bytes} bytes, {digest.size_bytes} were committed")
    if found not in (None, digest):
        part = "metadata" if is_metadata(key) else "content"
        return Damage(key, f"is not what was committed: its {part} changed")
    return None


class CommitLog:
    """The log of what was committed to a run's stores, one JSON object per line; later lines win.

    Each commit is one append: the files' lines, then one with the number of the group's rows. Lines that a
    power loss tore, and lines that are no such objects, are skipped; their files count as not written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size_bytes(self) -> int:
        """The log's size, which grows with each commit; 0 before the first."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(
        self, store: str, written: Mapping[Key, Digest], n_rows: Mapping[str, int] | None = None
    ) -> None:
        """Commit files, and the number of rows that each group holds with them."""
        lines: list[dict[str, Any]] = [
            {"store": store, "key": key, **asdict(digest)} for key, digest in written.items()
        ]
        lines += [{"store": store, "group": group, "n_rows": n} for group, n in (n_rows or {}).items()]
        self._append(lines)

    def remove(self, store: str, group: str = "") -> None:
        """Record that all files of a group are removed; no group means the whole store."""
        self._append([{"store": store, "removed": group}])

    def read(self, store: str) -> Committed:
        """Read what is committed to a store."""
        committed = Committed()
        for line in self._parse():
            if line is None or line.get("store") != store:
                continue
            if {"key", "size_bytes", "sha256"} <= line.keys():
                committed.files[as_key(line["key"])] = Digest(line["size_bytes"], line["sha256"])
            elif {"group", "n_rows"} <= line.keys():
                committed.n_rows[line["group"]] = line["n_rows"]
            elif "removed" in line:
                committed.drop(line["removed"])
        return committed

    def count_torn(self) -> int:
        """Count the lines that are no commits: torn by a power loss, or garbage."""
        return sum(line is None for line in self._parse())

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        # The first newline ends a line that a crash may have torn, so that it can't swallow the next.
        text = "\n" + "".join(json.dumps(line) + "\n" for line in lines)
        append_log(self.path, text.encode())

    def _parse(self) -> Iterator[dict[str, Any] | None]:
        """Yield each line's object, or None if it has none; skip empty lines."""
        try:
            with open_file(self.path) as file:
                for line in file:
                    if not line.isspace():
                        yield _parse_line(line)
        except FileNotFoundError:
            return
        except OSError as error:
            raise CorruptError(f"{self.path} can't be read: {error.strerror or error}") from error


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """Parse a line's object; return None if it is no commit."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and _is_commit(content) else None


def _is_commit(line: Mapping[str, Any]) -> bool:
    """Tell whether a line's values are valid: of their types, not negative, names within the store."""
    if not all(isinstance(line[name], kind) for name, kind in TYPES.items() if name in line):
        return False
    try:
        for name in ("group", "removed"):
            as_group(line.get(name, ROOT))
        as_key(line.get("key", "zarr.json"))
    except ValueError:
        return False
    return all(line.get(name, 0) >= 0 for name in ("size_bytes", "n_rows"))


def is_under(key: str, group: str) -> bool:
    """Tell whether a key is a group or lies below it; no group means the whole store."""
    return not group or key == group or key.startswith(f"{group}/")
