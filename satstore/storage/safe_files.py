"""Open files of folders that may come from somebody else: files only, never links.

A run folder holds only files and folders. A link in the place of one would make satstore read or write
elsewhere, and a named pipe would block it.
"""

import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from satstore.errors import CorruptError

KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def describe_kind(mode: int) -> str:
    """Return the kind of a file by its mode of ``os.lstat``, in words."""
    return KINDS.get(stat.S_IFMT(mode), "no file")


def is_file(path: Path) -> bool:
    """Tell whether a path is a file itself, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):  # a name that no file can have
        return False


def open_file(path: Path, *, follow: bool = False) -> io.BufferedReader:
    """Open a file for reading; `follow` a link if the user named it or its folder.

    Raises OSError if there is none, or it is a link, a folder, a named pipe or a device; says which.
    """
    check_is_file(path, path.stat() if follow else path.lstat())
    # A pipe or link that replaces it meanwhile is refused too, and can't block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        check_is_file(path, os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return io.open(descriptor, "rb")  # noqa: UP020 - its type is that of a buffered file


def check_is_file(path: Path, found: os.stat_result) -> None:
    """Raise an OSError for anything but a file; see :func:`open_file`."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        kind = describe_kind(found.st_mode)
        raise OSError(errno.EINVAL, f"it is {kind}; expected a file: remove it", str(path))


def read_content(path: Path, *, follow: bool = False) -> bytes:
    """Read a file's content; parameters and errors are those of :func:`open_file`."""
    with open_file(path, follow=follow) as file:
        return file.read()


def check_appendable(path: Path) -> None:
    """Check that to append to a path, or to truncate it, changes no other file.

    Raises OSError if the path exists and is no file, or the file has other names too.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    check_is_file(path, found)
    if found.st_nlink > 1:
        reason = f"it is one file with {found.st_nlink} names (hard links); put a copy of it in its place"
        raise OSError(errno.EMLINK, reason, str(path))


def check_folders(root: Path, path: Path, *, with_root: bool = False) -> None:
    """Check that no folder below a root, nor the root if `with_root`, down to a path's parent, is a link.

    Raises CorruptError that names the link.
    """
    below = path.relative_to(root).parts[:-1]
    folders = [root.joinpath(*below[:n]) for n in range(0 if with_root else 1, len(below) + 1)]
    for folder in folders:
        try:
            mode = folder.lstat().st_mode
        except OSError:
            return  # a missing folder has no links in it
        if stat.S_ISLNK(mode):
            raise CorruptError(
                f"{folder} is a link; expected a folder, and nothing was read or written behind it: put "
                "a folder in its place"
            )


def walk_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield each file below a folder, and its size in bytes; links are skipped.

    Raises OSError if an existing folder can't be listed.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from walk_files(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path), entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:  # it has just been removed
            continue
