"""A layer between the writing code and the file system: it counts, fails and remembers what a crash leaves.

Every change of a file or a folder under a root passes through it, one at a time. Beside the files as they
are, it keeps what a power loss would leave of them: the content that was synced, under the names that a
synced folder has. Everything else is lost; that is the worst that a file system may do.
"""

import hashlib
import os
import pathlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Tree = dict[str, bytes | None]
"""A path below the root to the content of a file, or to None for a folder."""

Before = Callable[[int, str, Path], None]


@dataclass
class _Folder:
    entries: dict[str, "_Folder | _File"] = field(default_factory=dict)
    synced: dict[str, "_Folder | _File"] = field(default_factory=dict)


@dataclass
class _File:
    content: bytes = b""
    synced: bytes = b""


class _Counted:
    """A file opened for writing, each of whose writes is an operation."""

    def __init__(self, file: Any, path: Path, disk: "Disk", node: _File) -> None:
        self._file, self._path, self._disk, self._node = file, path, disk, node

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Counted":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, content: Any) -> int:
        """Write in two halves: what dies in between leaves the first."""
        whole = bytes(content)
        for half in (whole[: len(whole) // 2], whole[len(whole) // 2 :]):
            with self._disk.operation("write", self._path):
                self._file.write(half)
                self._file.flush()
                self._node.content += half
        return len(whole)

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(map(bytes, parts)))


class Disk:
    """The layer over one root folder; what lies there counts as synced.

    Parameters
    ----------
    before
        Called with number (from 0), kind (``write``, ``fsync``, ``rename``, ``create``, ``remove``,
        ``mkdir``, ``rmdir``) and path of each operation, before it is done; what it raises is raised by it.
    """

    def __init__(self, root: Path, before: Before) -> None:
        self.root = root
        self.n_operations = 0
        self._before = before
        self._lock = threading.RLock()
        self._tree = _read(root)

    @contextmanager
    def operation(self, kind: str, path: Path) -> Iterator[None]:
        """Do one operation, no other beside it."""
        with self._lock:
            number = self.n_operations
            self.n_operations += 1
            self._before(number, kind, path)
            yield

    def files(self) -> Tree:
        """Return what is there: what a killed process leaves."""
        return dict(_walk(self._tree, synced=False))

    def synced_files(self) -> Tree:
        """Return what is there for sure: what a power loss leaves at the worst."""
        return dict(_walk(self._tree, synced=True))

    # The model

    def _folder(self, path: Path) -> _Folder:
        node = self._tree
        for name in path.relative_to(self.root).parts:
            found = node.entries[name]
            assert isinstance(found, _Folder)
            node = found
        return node

    def _is_mine(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and Path(path).is_relative_to(self.root)

    @contextmanager
    def installed(self) -> Iterator["Disk"]:
        """Stand between: of what writes through pathlib, os and shutil."""
        with pytest.MonkeyPatch.context() as patch:
            self._patch(patch)
            yield self

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        opened, fsync, replace, unlink = pathlib.Path.open, os.fsync, os.replace, os.unlink
        mkdir, rmdir = os.mkdir, os.rmdir

        def open_(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            if not self._is_mine(path) or not set("wax+") & set(mode):
                return opened(path, mode, *args, **options)
            with self._lock:  # who makes the folder may not be done yet
                folder = self._folder(path.parent)
                if "a" not in mode or path.name not in folder.entries:
                    with self.operation("create", path):
                        file = opened(path, mode, *args, **options)
                        folder.entries[path.name] = _File()
                else:
                    file = opened(path, mode, *args, **options)
                node = folder.entries[path.name]
            assert isinstance(node, _File)
            return _Counted(file, path, self, node)

        def fsync_(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            path = Path(f"/proc/self/fd/{number}").readlink()
            if not self._is_mine(path):
                return fsync(descriptor)
            with self.operation("fsync", path):
                node = self._tree if path == self.root else self._folder(path.parent).entries[path.name]
                if isinstance(node, _File):
                    node.synced = node.content
                else:
                    node.synced = dict(node.entries)
            return None

        def replace_(source: Any, target: Any, **options: Any) -> None:
            if not self._is_mine(source):
                return replace(source, target, **options)
            with self.operation("rename", Path(target)):
                replace(source, target, **options)
                moved = self._folder(Path(source).parent).entries.pop(Path(source).name)
                self._folder(Path(target).parent).entries[Path(target).name] = moved
            return None

        def unlink_(path: Any, **options: Any) -> None:
            if options or not self._is_mine(path):
                return unlink(path, **options)
            if Path(path).exists():
                with self.operation("remove", Path(path)):
                    unlink(path)
                    self._folder(Path(path).parent).entries.pop(Path(path).name, None)
                return None
            return unlink(path)

        def mkdir_(path: Any, *args: Any, **options: Any) -> None:
            if not self._is_mine(path):
                return mkdir(path, *args, **options)
            with self.operation("mkdir", Path(path)):
                mkdir(path, *args, **options)
                if Path(path) != self.root:
                    self._folder(Path(path).parent).entries[Path(path).name] = _Folder()
            return None

        def rmdir_(path: Any, **options: Any) -> None:
            if options or not self._is_mine(path):
                return rmdir(path, **options)
            with self.operation("rmdir", Path(path)):
                rmdir(path)
                self._folder(Path(path).parent).entries.pop(Path(path).name)
            return None

        def rmtree_(path: Any, ignore_errors: bool = False, **_: Any) -> None:
            # shutil's own goes by file descriptors, whose paths the layer would have to guess.
            if not Path(path).exists():
                return
            for child in sorted(Path(path).iterdir()):
                if child.is_dir() and not child.is_symlink():
                    rmtree_(child)
                else:
                    child.unlink()
            Path(path).rmdir()

        patch.setattr(pathlib.Path, "open", open_)
        patch.setattr("shutil.rmtree", rmtree_)
        for name, function in (("fsync", fsync_), ("replace", replace_), ("rename", replace_)):
            patch.setattr(os, name, function)
        for name, function in (
            ("unlink", unlink_),
            ("remove", unlink_),
            ("mkdir", mkdir_),
            ("rmdir", rmdir_),
        ):
            patch.setattr(os, name, function)


def _read(folder: Path) -> _Folder:
    entries: dict[str, _Folder | _File] = {}
    for path in sorted(folder.iterdir()):
        content = b"" if path.is_dir() else path.read_bytes()
        entries[path.name] = _read(path) if path.is_dir() else _File(content, content)
    return _Folder(entries, dict(entries))


def _walk(folder: _Folder, synced: bool, above: str = "") -> Iterator[tuple[str, bytes | None]]:
    for name, node in sorted((folder.synced if synced else folder.entries).items()):
        path = f"{above}{name}"
        if isinstance(node, _File):
            yield path, node.synced if synced else node.content
        else:
            yield path, None
            yield from _walk(node, synced, f"{path}/")


def lay_out(tree: Tree, root: Path) -> None:
    """Make files and folders as a tree has them."""
    root.mkdir(parents=True, exist_ok=True)
    for path, content in tree.items():
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def digest(tree: Tree, leave_out: tuple[str, ...] = ("events.jsonl", ".holder.json", ".lock")) -> str:
    """Tell trees apart, but for files that nothing depends on."""
    sha256 = hashlib.sha256()
    for path, content in tree.items():
        if not path.endswith(leave_out):
            sha256.update(repr((path, content)).encode())
    return sha256.hexdigest()
